# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Dict, Optional, Tuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from mmsemi.registry import TRANSFORMS

# A box of the default ranges fits a square image in about two of three draws.
_MAX_TRIES = 100


@TRANSFORMS.register_module()
class Cutout(BaseTransform):
    """Paint one rectangle with noise and take its pixels out of the loss.

    The strong augmentation of ST++ (https://arxiv.org/abs/2106.05095), for
    rounds of self-training, where the pseudo-labels are masks on disk and
    come in as ``gt_seg_map``. A view without ``gt_seg_map`` is only painted:
    pseudo-labels that are made during the training are then learned under
    the patch too, as with :class:`RandomCutout`.

    Area and aspect are drawn together with a uniform position until the
    rectangle lies inside the image, as in the released code, so that large
    rectangles are rarer than their share of the range.

    Args:
        area_range (tuple[float, float]): Range of the rectangle's area as a
            share of the image's. Defaults to (0.02, 0.4).
        aspect_range (tuple[float, float]): Range of height over width.
            Defaults to (0.3, 1 / 0.3).
        fill (float | str): Value, or 'noise' for uniform random values
            between 0 and 255. Defaults to 'noise'.
        seg_ignore_label (int): Label of the maps in ``seg_fields`` inside the
            rectangle. Defaults to 255.
        prob (float): Probability to paint at all. Defaults to 0.5.

    Raises:
        ValueError: If an argument is not as above.
    """

    records_homography = True

    def __init__(self,
                 area_range: Tuple[float, float] = (0.02, 0.4),
                 aspect_range: Tuple[float, float] = (0.3, 1 / 0.3),
                 fill: object = 'noise',
                 seg_ignore_label: int = 255,
                 prob: float = 0.5) -> None:
        if not 0 < area_range[0] <= area_range[1] <= 1:
            raise ValueError('Cutout: area_range must be (low, high) with '
                             f'0 < low <= high <= 1, but got {area_range}')
        if not 0 < aspect_range[0] <= aspect_range[1]:
            raise ValueError('Cutout: aspect_range must be (low, high) with '
                             f'0 < low <= high, but got {aspect_range}')
        if fill != 'noise' and not isinstance(fill, (int, float)):
            raise ValueError("Cutout: fill must be a value or 'noise', but "
                             f'got {fill!r}')
        if not 0 <= prob <= 1:
            raise ValueError('Cutout: prob must be between 0 and 1, but got '
                             f'{prob}')
        self.area_range = tuple(area_range)
        self.aspect_range = tuple(aspect_range)
        self.fill = fill
        self.seg_ignore_label = seg_ignore_label
        self.prob = prob

    @cache_randomness
    def _random_params(self, height: int,
                       width: int) -> Optional[Tuple[int, int, int, int, int]]:
        """x, y, width and height of the rectangle, and the noise's seed."""
        if np.random.rand() >= self.prob:
            return None
        for _ in range(_MAX_TRIES):
            area = np.random.uniform(*self.area_range) * height * width
            aspect = np.random.uniform(*self.aspect_range)
            box_w, box_h = int((area / aspect)**.5), int((area * aspect)**.5)
            x, y = np.random.randint(width), np.random.randint(height)
            if x + box_w <= width and y + box_h <= height:
                return x, y, box_w, box_h, np.random.randint(2**31)
        return None

    def transform(self, results: Dict) -> Dict:
        """Paint the rectangle.

        Args:
            results (dict): Result dict with ``img`` (H, W, C) or (H, W);
                optional ``seg_fields`` and the maps it names.

        Returns:
            dict: The same dict; changed arrays are new ones.
        """
        params = self._random_params(*results['img'].shape[:2])
        if params is None:
            return results
        x, y, width, height, seed = params
        window = slice(y, y + height), slice(x, x + width)
        img = results['img'].copy()
        if self.fill == 'noise':
            noise = np.random.RandomState(seed)
            img[window] = noise.uniform(0, 255, img[window].shape)
        else:
            img[window] = self.fill
        results['img'] = img
        for key in results.get('seg_fields', []):
            results[key] = results[key].copy()
            results[key][window] = self.seg_ignore_label
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(area_range={self.area_range}, '
                f'aspect_range={self.aspect_range}, fill={self.fill!r}, '
                f'seg_ignore_label={self.seg_ignore_label}, '
                f'prob={self.prob})')
