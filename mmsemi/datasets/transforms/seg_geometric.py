# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Geometry of the weak view in semi-supervised semantic segmentation."""
import math
from typing import Dict, Optional, Tuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from mmsemi.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomResizeByLongSide(BaseTransform):
    """Resize so that the long side has a random length.

    The length is a whole number of pixels, uniform between
    ``floor(low * base)`` and ``floor(high * base)``, both included; the
    short side follows as ``floor(short * length / long + 0.5)``. ``base`` is
    the image's own long side, as in UniMatch's released code, or
    ``base_size``, as in that of ST++ (400 for Pascal VOC, 2048 for
    Cityscapes). mmcv's ``RandomResize`` draws a scale factor instead.

    The image is resized bilinearly. Masks take the pixel whose centre is
    nearest, so that they stay where the image is; the nearest neighbour of
    mmseg's ``Resize`` lies up to half a pixel beside it.

    Required Keys: img; optional seg_fields and the maps it names.

    Modified Keys: img, the maps, and ``homography_matrix`` (float32 (3, 3),
    loaded image -> view, continuous edge coordinates), which is multiplied
    from the left by this transform's own matrix.

    Added Keys: img_shape, scale (w, h), scale_factor (w, h), keep_ratio.

    Args:
        ratio_range (tuple[float, float]): (low, high) of the long side as a
            share of ``base``. Defaults to (0.5, 2.0).
        base_size (int, optional): ``base`` in pixels. Defaults to None, the
            long side of each image.

    Raises:
        ValueError: If an argument is not as above.
    """

    records_homography = True

    def __init__(self,
                 ratio_range: Tuple[float, float] = (0.5, 2.0),
                 base_size: Optional[int] = None) -> None:
        low, high = ratio_range
        if not 0 < low <= high:
            raise ValueError('RandomResizeByLongSide: ratio_range must be '
                             f'(low, high) with 0 < low <= high, but got '
                             f'{tuple(ratio_range)}')
        if base_size is not None and math.floor(low * base_size) < 1:
            raise ValueError(
                'RandomResizeByLongSide: base_size must be a number of '
                f'pixels with ratio_range[0] * base_size of at least 1, but '
                f'got base_size={base_size}')
        self.ratio_range = (low, high)
        self.base_size = base_size

    @cache_randomness
    def _random_length(self, long_side: int) -> int:
        base = long_side if self.base_size is None else self.base_size
        low, high = (math.floor(r * base) for r in self.ratio_range)
        return max(1, np.random.randint(low, high + 1))

    def transform(self, results: Dict) -> Dict:
        """Resize image and maps.

        Args:
            results (dict): Result dict, keys as in the class docstring.

        Returns:
            dict: The same dict, changed.
        """
        height, width = results['img'].shape[:2]
        length = self._random_length(max(height, width))
        new_h, new_w = scaled_size((height, width), length)
        results['img'] = resize_image(results['img'], new_h, new_w,
                                      cv2.INTER_LINEAR)
        for key in results.get('seg_fields', []):
            results[key] = resize_image(results[key], new_h, new_w,
                                        cv2.INTER_NEAREST_EXACT)
        factor = (new_w / width, new_h / height)
        previous = results.get('homography_matrix')
        previous = np.eye(3) if previous is None else previous
        results['homography_matrix'] = (np.diag([*factor, 1.])
                                        @ previous).astype(np.float32)
        results['img_shape'] = (new_h, new_w)
        results['scale'] = (new_w, new_h)
        results['scale_factor'] = factor
        results['keep_ratio'] = True
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(ratio_range={self.ratio_range}, '
                f'base_size={self.base_size})')


def scaled_size(shape: Tuple[int, int], length: int) -> Tuple[int, int]:
    """Return the size of an image whose long side gets a given length.

    Args:
        shape (tuple[int, int]): Height and width in pixels.
        length (int): New length of the longer one, in pixels.

    Returns:
        tuple[int, int]: New height and width, each at least 1; a half pixel
        counts as a whole one.
    """
    long_side = max(shape)
    # In whole numbers, because 0.5 must not fall to rounding errors.
    height, width = ((2 * side * length + long_side) // (2 * long_side)
                     for side in shape)
    return max(1, height), max(1, width)


def resize_image(img: np.ndarray, height: int, width: int,
                 interpolation: int) -> np.ndarray:
    """Resize an image or a map and keep its number of axes.

    Args:
        img (np.ndarray): (H, W) or (H, W, C).
        height (int): New height in pixels.
        width (int): New width in pixels.
        interpolation (int): One of OpenCV's, such as ``cv2.INTER_LINEAR``.

    Returns:
        np.ndarray: (height, width) or (height, width, C).
    """
    out = cv2.resize(img, (width, height), interpolation=interpolation)
    # OpenCV drops the channel axis of (H, W, 1).
    return out.reshape((height, width) + img.shape[2:])
