# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Masks of referred objects, and geometry that the sentence goes along with.

Nothing here needs mmdet. ``homography_matrix`` (float32 (3, 3), loaded image
-> view, continuous edge coordinates) is multiplied from the left by each
transform's own matrix, so mask proposals loaded behind lie right.
"""
import re
from typing import Any, Dict, List, Optional, Tuple, Union

import cv2
import numpy as np
import pycocotools.mask as mask_utils
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from mmsemi.registry import TRANSFORMS
from mmsemi.structures.view_geometry import warp_masks
from .seg_geometric import resize_image

_PAIRS = [('left', 'right'), ('leftmost', 'rightmost'),
          ('leftest', 'rightest'), ('lefthand', 'righthand'),
          ('leftward', 'rightward'), ('leftside', 'rightside'),
          ('lefty', 'righty'), ('lft', 'rt'), ('lt', 'rt'), ('lf', 'rt'),
          ('l', 'r'), ('west', 'east'), ('western', 'eastern')]
_MIRRORED = {right: left for left, right in reversed(_PAIRS)}
_MIRRORED.update(_PAIRS)
# Where things are counted from or point to; no other word stands for it in a
# mirrored image.
_UNMIRRORED = re.compile(
    r"\bo'?\s?clock\b|\boclock\b|\b(?:counter|anti)?-?clockwise\b")
# Counting starts at the left unless a sentence says otherwise.
_ORDINALS = re.compile(
    r'\b(?:first|second|third|fourth|fifth|sixth|last|1st|2nd|3rd|[4-9]th)\b')
_WORDS = re.compile(r'[a-z]+')
DIRECTIONS = ('keep', 'swap')


@TRANSFORMS.register_module()
class LoadReferringMask(BaseTransform):
    """Decode the referred object's mask into a label map.

    Polygons of one object that overlap are a union. (LAVT's loader sums the
    parts and keeps pixels of sum 1, so what is covered twice becomes
    background.) Behind a resizing transform, as in a test pipeline, the map
    keeps the size of the file's image, as mmseg's ``LoadAnnotations`` does
    there.

    Required Keys: ref_mask (COCO's polygons or run lengths), height, width;
    optional ori_shape, which must be (height, width) then.

    Added Keys: gt_seg_map (uint8 (H, W): 1 on the object, else 0), which is
    also appended to seg_fields.
    """

    records_homography = True

    def transform(self, results: Dict) -> Dict:
        """Decode the mask.

        Args:
            results (dict): Result dict, keys as in the class docstring.

        Returns:
            dict: The same dict, changed.

        Raises:
            ValueError: If there is no mask, or the image has another size
                than the annotations say.
        """
        if results.get('ref_mask') is None:
            raise ValueError(
                'mmsemi.LoadReferringMask: the sample has no ref_mask. Masks '
                'come from mmsemi.ReferringDataset with labeled=True; remove '
                'this transform from the pipeline of unlabelled images.')
        shape = results['height'], results['width']
        found = tuple(results.get('ori_shape', shape))[:2]
        if found != shape:
            raise ValueError(
                f'The image {results.get("img_path")} has {found} pixels '
                f'(height, width), its annotations say {shape}. Are these '
                'the right images?')
        results['gt_seg_map'] = decode_mask(results['ref_mask'], *shape)
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@TRANSFORMS.register_module()
class ResizeTo(BaseTransform):
    """Resize image and maps to one size, whatever the aspect ratio.

    It differs from mmseg's ``Resize`` without ``keep_ratio`` in that it
    records its matrix, and that maps move as mask proposals do, by
    :func:`mmsemi.structures.view_geometry.warp_masks`: they take the pixel
    whose centre is nearest, and the nearest neighbour of mmseg's lies up to
    half a pixel beside it. A flip comes behind it, so that label maps and
    proposals stay equal to the pixel.

    Required Keys: img; optional seg_fields and the maps it names.

    Modified Keys: img, the maps, homography_matrix.

    Added Keys: img_shape, scale (w, h), scale_factor (w, h), keep_ratio.

    Args:
        scale (tuple[int, int]): Width and height in pixels. SemiRES and
            LAVT use (480, 480).

    Raises:
        ValueError: If ``scale`` is not as above.
    """

    records_homography = True

    def __init__(self, scale: Tuple[int, int]) -> None:
        sides = tuple(scale) if isinstance(scale, (list, tuple)) else ()
        if len(sides) != 2 or not all(
                isinstance(side, int) and side > 0 for side in sides):
            raise ValueError('ResizeTo.scale must be (width, height) in '
                             f'pixels, got {scale!r}')
        self.scale = sides

    def transform(self, results: Dict) -> Dict:
        """Resize image and maps.

        Args:
            results (dict): Result dict, keys as in the class docstring.

        Returns:
            dict: The same dict, changed.
        """
        height, width = results['img'].shape[:2]
        new_w, new_h = self.scale
        results['img'] = resize_image(results['img'], new_h, new_w,
                                      cv2.INTER_LINEAR)
        factor = (new_w / width, new_h / height)
        matrix = np.diag([*factor, 1.])
        for key in results.get('seg_fields', []):
            labels = torch.from_numpy(np.ascontiguousarray(results[key]))
            results[key] = warp_masks(labels[None], torch.from_numpy(matrix),
                                      (new_h, new_w))[0].numpy()
        _record(results, matrix)
        results['img_shape'] = (new_h, new_w)
        results['scale'] = self.scale
        results['scale_factor'] = factor
        results['keep_ratio'] = False
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale})'


@TRANSFORMS.register_module()
class FlipWithWords(BaseTransform):
    """Flip an image from left to right where its sentence allows it.

    A sentence that says 'left' becomes wrong by a flip. Released code of
    LAVT and SemiRES therefore flips nothing. Here a sentence of no direction
    is flipped like any other image, and one with a direction is either kept
    or gets its words swapped (left and right, leftmost and rightmost, west
    and east, and short forms of RefCOCO). Sentences with the hours of a
    clock, or that count without saying from where ('second from left' says
    it), are never flipped. Do not use it where images show letters or
    digits.

    Place it before ``mmsemi.MultiBranch``, as all views share image and text,
    and behind ``mmsemi.ResizeTo``.

    Required Keys: img, text (str or list[str]: all sentences must allow it);
    optional seg_fields and the maps it names.

    Modified Keys: img, the maps, text, homography_matrix.

    Added Keys: flip (bool), flip_direction ('horizontal' or None).

    Args:
        prob (float): Probability to flip an image whose sentence allows it.
            Defaults to 0.5.
        directions (str): What becomes of sentences with 'left', 'right' and
            the like: 'keep', they are not flipped, or 'swap', the words are
            exchanged and they are. Defaults to 'keep'.

    Raises:
        ValueError: If an argument is not as above.
    """

    records_homography = True

    def __init__(self, prob: float = 0.5, directions: str = 'keep') -> None:
        if not 0 <= prob <= 1:
            raise ValueError('FlipWithWords.prob must be between 0 and 1, '
                             f'got {prob}')
        if directions not in DIRECTIONS:
            raise ValueError(f'FlipWithWords.directions must be one of '
                             f'{DIRECTIONS}, got {directions!r}')
        self.prob = prob
        self.directions = directions

    @cache_randomness
    def _random_flip(self) -> bool:
        return np.random.rand() < self.prob

    def transform(self, results: Dict) -> Dict:
        """Flip image, maps and words, or leave all as they are.

        Args:
            results (dict): Result dict, keys as in the class docstring.

        Returns:
            dict: The same dict, changed.

        Raises:
            ValueError: If there is no text.
        """
        if results.get('text') is None:
            raise ValueError('mmsemi.FlipWithWords: the sample has no text; '
                             'it comes from mmsemi.ReferringDataset.')
        # Drawn for every image: what follows must not depend on the words.
        wanted = self._random_flip()
        text = self._mirrored(results['text'])
        results['flip'] = wanted and text is not None
        results['flip_direction'] = None
        if not results['flip']:
            return results
        results['flip_direction'] = 'horizontal'
        results['text'] = text
        for key in ['img', *results.get('seg_fields', [])]:
            results[key] = np.ascontiguousarray(results[key][:, ::-1])
        width = results['img'].shape[1]
        _record(results, np.array([[-1., 0, width], [0, 1, 0], [0, 0, 1]]))
        return results

    def _mirrored(self, text: Union[str, List[str]]) -> Any:
        if isinstance(text, str):
            mirrored = mirror_sentence(text)
            changed = mirrored != text
            return None if changed and self.directions == 'keep' else mirrored
        sentences = [self._mirrored(sentence) for sentence in text]
        return None if None in sentences else sentences

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(prob={self.prob}, '
                f'directions={self.directions!r})')


def mirror_sentence(sentence: str) -> Optional[str]:
    """Say what a sentence says, of the mirrored image.

    Args:
        sentence (str): English sentence.

    Returns:
        str | None: The sentence with left and right exchanged; itself if it
        has no direction; None if no exchange of words makes it right.
    """
    lower = sentence.lower()
    if _UNMIRRORED.search(lower):
        return None
    directed = any(word in _MIRRORED for word in _WORDS.findall(lower))
    if not directed and _ORDINALS.search(lower):
        return None
    return re.sub(
        _WORDS.pattern,
        lambda match: _like(match[0], _MIRRORED.get(match[0].lower())),
        sentence,
        flags=re.IGNORECASE)


def decode_mask(segmentation: Union[dict, list], height: int,
                width: int) -> np.ndarray:
    """Decode COCO's segmentation; overlapping polygons are a union.

    Args:
        segmentation (dict | list): Run lengths, compressed or not, or
            polygons [[x0, y0, x1, y1, ...], ...] in pixels.
        height (int): Height of the image in pixels.
        width (int): Width of the image in pixels.

    Returns:
        np.ndarray: uint8 (height, width): 1 on the object, else 0.
    """
    if isinstance(segmentation, dict) and not isinstance(
            segmentation['counts'], list):
        return mask_utils.decode(segmentation)
    rles = mask_utils.frPyObjects(segmentation, height, width)
    return mask_utils.decode(
        rles if isinstance(rles, dict) else mask_utils.merge(rles))


def _record(results: Dict, matrix: np.ndarray) -> None:
    previous = results.get('homography_matrix')
    previous = np.eye(3) if previous is None else previous
    results['homography_matrix'] = (matrix @ previous).astype(np.float32)


def _like(word: str, other: Optional[str]) -> str:
    """The other word, written as big as the word is."""
    if other is None:
        return word
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
