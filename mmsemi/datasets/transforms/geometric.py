# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Geometric transforms whose matrix is right to the half pixel.

mmdet's ``Resize``, ``RandomFlip`` and ``RandomCrop`` record their matrix in
continuous edge coordinates, its ``Rotate`` and ``Shear`` in pixel-index
coordinates, and its ``RandomAffine`` records none and refuses masks. The
transforms here fill that hole with one warp for image, masks, boxes and
segmentation map.
"""
from typing import Dict, List, Optional, Tuple, Union

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmdet.structures.bbox import autocast_box_type
from mmdet.structures.mask import BitmapMasks, PolygonMasks

from mmsemi.registry import TRANSFORMS
from mmsemi.structures.view_geometry import warp_masks

_INTERPOLATIONS = dict(
    nearest=cv2.INTER_NEAREST,
    bilinear=cv2.INTER_LINEAR,
    bicubic=cv2.INTER_CUBIC)
_PER_INSTANCE_KEYS = ('gt_bboxes', 'gt_bboxes_labels', 'gt_masks',
                      'gt_ignore_flags', 'gt_instances_ids')


@TRANSFORMS.register_module()
class RandomAffine(BaseTransform):
    """Rotate, scale, shear and shift in one warp around the image centre.

    The view keeps its size. Instances that leave it, or keep less than
    ``min_area`` pixels, are dropped from boxes, labels, masks and flags
    alike; all of them may go, so put mmdet's ``FilterAnnotations`` behind it
    where empty images are not wanted. Where masks are present the boxes are
    taken from the warped masks, because the hull of a turned box is too
    large.

    Required Keys: img; optional gt_bboxes, gt_bboxes_labels, gt_masks
    (BitmapMasks | PolygonMasks), gt_ignore_flags, gt_seg_map.

    Modified Keys: all of these, and ``homography_matrix`` (float32 (3, 3),
    loaded image -> view, continuous edge coordinates), which is multiplied
    from the left by this transform's own matrix.

    Args:
        max_rotate_degree (float): Rotation range is (-x, x) degrees,
            positive turns clockwise. Defaults to 10.
        max_translate_ratio (float | tuple[float, float]): Shift range is
            (-x, x) of the width and (-y, y) of the height; a single number
            serves both. Shifts are whole pixels. Defaults to 0.1.
        scaling_ratio_range (tuple[float, float]): Range of the scale factor.
            Defaults to (0.5, 1.5).
        max_shear_degree (float | tuple[float, float]): Shear range is
            (-x, x) degrees along the width and (-y, y) along the height,
            below 90; a single number serves both. Defaults to 2.
        prob (float): Probability to warp at all. Defaults to 1.0.
        min_area (float): Smallest visible area, in pixels of the mask or,
            without masks, of the box, with which an instance is kept.
            Defaults to 1.
        img_border_value (float | tuple[float, ...]): Value of image pixels
            that come from outside. Defaults to 114.
        seg_ignore_label (int): Label of segmentation map pixels that come
            from outside. Defaults to 255.
        interpolation (str): For the image: 'nearest', 'bilinear' or
            'bicubic'. Masks and maps are always 'nearest'. Defaults to
            'bilinear'.

    Raises:
        ValueError: If an argument is not as above.
    """

    records_homography = True

    def __init__(self,
                 max_rotate_degree: float = 10.,
                 max_translate_ratio: Union[float, Tuple[float, float]] = 0.1,
                 scaling_ratio_range: Tuple[float, float] = (0.5, 1.5),
                 max_shear_degree: Union[float, Tuple[float, float]] = 2.,
                 prob: float = 1.0,
                 min_area: float = 1.,
                 img_border_value: Union[float, Tuple[float, ...]] = 114,
                 seg_ignore_label: int = 255,
                 interpolation: str = 'bilinear') -> None:
        self.max_rotate_degree = max_rotate_degree
        self.max_translate_ratio = _pair(max_translate_ratio)
        self.scaling_ratio_range = tuple(scaling_ratio_range)
        self.max_shear_degree = _pair(max_shear_degree)
        self.prob = prob
        self.min_area = min_area
        if isinstance(img_border_value, (int, float)):
            img_border_value = (img_border_value, ) * 4
        self.img_border_value = tuple(img_border_value)
        self.seg_ignore_label = seg_ignore_label
        self.interpolation = interpolation
        self._check_arguments()

    def _check_arguments(self) -> None:
        low, high = self.scaling_ratio_range
        rules = dict(
            max_rotate_degree=(0 <= self.max_rotate_degree <= 180,
                               'between 0 and 180'),
            max_translate_ratio=(all(0 <= x <= 1
                                     for x in self.max_translate_ratio),
                                 'between 0 and 1'),
            scaling_ratio_range=(0 < low <= high, '0 < low <= high'),
            max_shear_degree=(all(0 <= x < 90 for x in self.max_shear_degree),
                              'between 0 and below 90'),
            prob=(0 <= self.prob <= 1, 'between 0 and 1'),
            min_area=(self.min_area > 0, 'above 0'),
            interpolation=(self.interpolation in _INTERPOLATIONS,
                           f'one of {sorted(_INTERPOLATIONS)}'))
        for field, (holds, allowed) in rules.items():
            if not holds:
                raise ValueError(
                    f'{type(self).__name__}: {field} must be {allowed}, but '
                    f'got {getattr(self, field)!r}')

    @cache_randomness
    def _random_params(self) -> Optional[Dict[str, float]]:
        """The draw of this image; None to leave it alone."""
        if np.random.rand() >= self.prob:
            return None
        angle, *shear = np.random.uniform(-1, 1, 3) * np.array(
            [self.max_rotate_degree, *self.max_shear_degree])
        shift = np.random.uniform(-1, 1, 2) * self.max_translate_ratio
        return dict(
            angle=np.deg2rad(angle),
            scale=np.random.uniform(*self.scaling_ratio_range),
            shear_x=np.tan(np.deg2rad(shear[0])),
            shear_y=np.tan(np.deg2rad(shear[1])),
            shift_x=shift[0],
            shift_y=shift[1])

    @staticmethod
    def _get_matrix(params: Dict[str, float], height: int,
                    width: int) -> np.ndarray:
        """Edge-coordinate matrix of a draw, float64 of shape (3, 3)."""
        cos, sin = np.cos(params['angle']), np.sin(params['angle'])
        rotation = np.array([[cos, -sin], [sin, cos]])
        shear = np.array([[1, params['shear_x']], [params['shear_y'], 1]])
        centre = np.array([width / 2, height / 2])
        # Whole pixels, so that a pure shift resamples nothing.
        shift = np.round(
            [params['shift_x'] * width, params['shift_y'] * height])
        matrix = np.eye(3)
        matrix[:2, :2] = rotation @ shear * params['scale']
        matrix[:2, 2] = centre + shift - matrix[:2, :2] @ centre
        return matrix

    @autocast_box_type()
    def transform(self, results: Dict) -> Dict:
        """Warp image and labels.

        Args:
            results (dict): Result dict, keys as in the class docstring.

        Returns:
            dict: The same dict, changed.

        Raises:
            TypeError: If ``gt_masks`` has an unknown type.
            ValueError: If ``gt_bboxes`` and ``gt_masks`` differ in length,
                as under mmdet's ``ProposalBroadcaster``.
        """
        params = self._random_params()
        if params is None:
            return results
        shape = results['img'].shape[:2]
        matrix = self._get_matrix(params, *shape)
        previous = results.get('homography_matrix')
        previous = np.eye(3) if previous is None else previous
        results['homography_matrix'] = (matrix @ previous).astype(np.float32)
        results['img'] = self._warp_image(results['img'], matrix)
        results['img_shape'] = shape
        self._warp_instances(results, torch.from_numpy(matrix), shape)
        if results.get('gt_seg_map') is not None:
            results['gt_seg_map'] = self._warp_seg_map(
                results['gt_seg_map'], torch.from_numpy(matrix))
        return results

    def _warp_image(self, img: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        # OpenCV counts from pixel centres: move by half a pixel around it.
        to_edge = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        index_matrix = np.linalg.inv(to_edge) @ matrix @ to_edge
        out = cv2.warpAffine(
            img,
            index_matrix[:2],
            img.shape[1::-1],
            flags=_INTERPOLATIONS[self.interpolation],
            borderValue=self.img_border_value)
        return out.reshape(img.shape)

    def _warp_seg_map(self, seg_map: np.ndarray,
                      matrix: torch.Tensor) -> np.ndarray:
        labels = torch.from_numpy(np.ascontiguousarray(seg_map))[None]
        both = torch.cat([labels, torch.ones_like(labels)])
        labels, inside = warp_masks(both, matrix, seg_map.shape)
        labels[inside == 0] = self.seg_ignore_label
        return labels.numpy()

    def _warp_instances(self, results: Dict, matrix: torch.Tensor,
                        shape: Tuple[int, int]) -> None:
        boxes = results.get('gt_bboxes')
        masks = results.get('gt_masks')
        if boxes is not None and masks is not None:
            if len(boxes) != len(masks):
                raise ValueError(
                    f'{type(self).__name__}: gt_bboxes has {len(boxes)} '
                    f'entries but gt_masks has {len(masks)}; warp proposals '
                    'without masks')
        if masks is not None:
            masks = results['gt_masks'] = _warp_instance_masks(
                masks, matrix, shape)
            keep = masks.areas >= self.min_area
            if boxes is not None:
                results['gt_bboxes'] = masks.get_bboxes(type(boxes))
        elif boxes is not None:
            boxes.project_(matrix.float())
            boxes.clip_(shape)
            keep = (boxes.areas >= self.min_area).numpy()
        else:
            return
        for key in _PER_INSTANCE_KEYS:
            if results.get(key) is not None:
                results[key] = results[key][keep]

    def __repr__(self) -> str:
        return (f'{type(self).__name__}('
                f'max_rotate_degree={self.max_rotate_degree}, '
                f'max_translate_ratio={self.max_translate_ratio}, '
                f'scaling_ratio_range={self.scaling_ratio_range}, '
                f'max_shear_degree={self.max_shear_degree}, '
                f'prob={self.prob}, min_area={self.min_area}, '
                f'img_border_value={self.img_border_value}, '
                f'seg_ignore_label={self.seg_ignore_label}, '
                f'interpolation={self.interpolation!r})')


@TRANSFORMS.register_module()
class RandomRotate(RandomAffine):
    """Rotate around the image centre; see :class:`RandomAffine`.

    Args:
        max_rotate_degree (float): Range is (-x, x) degrees. Defaults to 30.
        prob (float): Defaults to 0.5.
        min_area (float): Defaults to 1.
        img_border_value (float | tuple[float, ...]): Defaults to 114.
        seg_ignore_label (int): Defaults to 255.
        interpolation (str): Defaults to 'bilinear'.
    """

    def __init__(self,
                 max_rotate_degree: float = 30.,
                 prob: float = 0.5,
                 min_area: float = 1.,
                 img_border_value: Union[float, Tuple[float, ...]] = 114,
                 seg_ignore_label: int = 255,
                 interpolation: str = 'bilinear') -> None:
        super().__init__(max_rotate_degree, 0., (1., 1.), 0., prob, min_area,
                         img_border_value, seg_ignore_label, interpolation)


@TRANSFORMS.register_module()
class RandomShear(RandomAffine):
    """Shear around the image centre; see :class:`RandomAffine`.

    Args:
        max_shear_degree (float | tuple[float, float]): Range is (-x, x)
            degrees along the width and (-y, y) along the height. Defaults
            to 30.
        prob (float): Defaults to 0.5.
        min_area (float): Defaults to 1.
        img_border_value (float | tuple[float, ...]): Defaults to 114.
        seg_ignore_label (int): Defaults to 255.
        interpolation (str): Defaults to 'bilinear'.
    """

    def __init__(self,
                 max_shear_degree: Union[float, Tuple[float, float]] = 30.,
                 prob: float = 0.5,
                 min_area: float = 1.,
                 img_border_value: Union[float, Tuple[float, ...]] = 114,
                 seg_ignore_label: int = 255,
                 interpolation: str = 'bilinear') -> None:
        super().__init__(0., 0., (1., 1.), max_shear_degree, prob, min_area,
                         img_border_value, seg_ignore_label, interpolation)


@TRANSFORMS.register_module()
class RandomTranslate(RandomAffine):
    """Shift by whole pixels; see :class:`RandomAffine`.

    Args:
        max_translate_ratio (float | tuple[float, float]): Range is (-x, x)
            of the width and (-y, y) of the height. Defaults to 0.1.
        prob (float): Defaults to 0.5.
        min_area (float): Defaults to 1.
        img_border_value (float | tuple[float, ...]): Defaults to 114.
        seg_ignore_label (int): Defaults to 255.
    """

    def __init__(self,
                 max_translate_ratio: Union[float, Tuple[float, float]] = 0.1,
                 prob: float = 0.5,
                 min_area: float = 1.,
                 img_border_value: Union[float, Tuple[float, ...]] = 114,
                 seg_ignore_label: int = 255) -> None:
        super().__init__(0., max_translate_ratio, (1., 1.), 0., prob, min_area,
                         img_border_value, seg_ignore_label, 'nearest')


def _pair(value: Union[float, Tuple[float, float]]) -> Tuple[float, float]:
    if isinstance(value, (int, float)):
        return (value, value)
    return tuple(value)


def _warp_instance_masks(
        masks: Union[BitmapMasks, PolygonMasks], matrix: torch.Tensor,
        shape: Tuple[int, int]) -> Union[BitmapMasks, PolygonMasks]:
    if isinstance(masks, BitmapMasks):
        bitmaps = torch.from_numpy(np.ascontiguousarray(masks.masks))
        return BitmapMasks(warp_masks(bitmaps, matrix, shape).numpy(), *shape)
    if isinstance(masks, PolygonMasks):
        objects = [
            _warp_polygons(polygons, matrix.numpy(), shape)
            for polygons in masks.masks
        ]
        return PolygonMasks(objects, *shape)
    raise TypeError('gt_masks must be BitmapMasks or PolygonMasks, but got '
                    f'{type(masks).__name__}')


def _warp_polygons(polygons: List[np.ndarray], matrix: np.ndarray,
                   shape: Tuple[int, int]) -> List[np.ndarray]:
    """Move one object's polygons and cut off what leaves the view."""
    size = np.array(shape[::-1])
    moved = [
        polygon.reshape(-1, 2) @ matrix[:2, :2].T + matrix[:2, 2]
        for polygon in polygons
    ]
    inside = all(
        (0 <= points).all() and (points <= size).all() for points in moved)
    moved = [points.reshape(-1) for points in moved]
    if inside:
        return moved
    view = np.array([0, 0, *size])
    return PolygonMasks([moved], *shape).crop(view).masks[0]
