# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The strong colour view: transforms that change pixels, never labels.

All of them take BGR images of 0-255, uint8 or float32, keep the dtype, and
draw from NumPy's global generator behind ``cache_randomness``.
"""
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, Compose
from mmcv.transforms.utils import cache_randomness

from mmsemi.registry import TRANSFORMS

Range = Tuple[float, float]


class _RandomColor(BaseTransform):
    """Changes ``results['img']`` with a probability, and nothing else.

    A subclass decorates its own ``_random_params`` with
    ``cache_randomness``. None may be decorated here: mmcv would then collect
    the random methods of all subclasses in one shared list.
    """

    records_homography = True

    def __init__(self, prob: float) -> None:
        name = type(self).__name__
        if not 0 <= prob <= 1:
            raise ValueError(
                f'{name}: prob must be between 0 and 1, but got {prob}')
        self.prob = prob

    def _random_params(self) -> Any:
        """What to do to this image; None to leave it alone."""
        raise NotImplementedError

    def _change(self, img: np.ndarray, params: Any) -> np.ndarray:
        raise NotImplementedError

    def _happens(self) -> bool:
        return np.random.rand() < self.prob

    def _check_image(self, img: np.ndarray) -> None:
        if img.dtype not in (np.uint8, np.float32) or img.ndim not in (
                2, 3) or (img.ndim == 3 and img.shape[2] not in (1, 3)):
            raise ValueError(
                f'{type(self).__name__}: img must be uint8 or float32 with 1 '
                f'or 3 channels, but got {img.dtype} of shape {img.shape}')

    def transform(self, results: Dict) -> Dict:
        """Change the image.

        Args:
            results (dict): Result dict with ``img``, BGR, uint8 or float32.

        Returns:
            dict: The same dict; ``img`` is a new array if it was changed.
        """
        img = results['img']
        self._check_image(img)
        params = self._random_params()
        if params is not None:
            # OpenCV drops the channel axis of (H, W, 1).
            results['img'] = self._change(img, params).reshape(img.shape)
        return results


@TRANSFORMS.register_module()
class ColorJitter(_RandomColor):
    """Brightness, contrast, saturation and hue, in random order.

    Factors follow torchvision's definition: brightness scales, contrast
    blends with the mean grey, saturation blends with the grey image, hue
    turns the hue circle. Images with one channel skip the last two.

    Args:
        brightness (float | tuple[float, float]): Factor range; a single
            ``x`` stands for ``(max(0, 1 - x), 1 + x)``. Defaults to 0.5.
        contrast (float | tuple[float, float]): As above. Defaults to 0.5.
        saturation (float | tuple[float, float]): As above. Defaults to 0.5.
        hue (float | tuple[float, float]): Range of the shift in turns,
            within [-0.5, 0.5]; a single ``x`` stands for ``(-x, x)``.
            Defaults to 0.25.
        prob (float): Probability to jitter at all. Defaults to 1.0.

    Raises:
        ValueError: If a range is not as above.
    """

    def __init__(self,
                 brightness: Union[float, Range] = 0.5,
                 contrast: Union[float, Range] = 0.5,
                 saturation: Union[float, Range] = 0.5,
                 hue: Union[float, Range] = 0.25,
                 prob: float = 1.0) -> None:
        super().__init__(prob)
        infinity = float('inf')
        self.brightness = self._range('brightness', brightness, 1, infinity)
        self.contrast = self._range('contrast', contrast, 1, infinity)
        self.saturation = self._range('saturation', saturation, 1, infinity)
        self.hue = self._range('hue', hue, 0, 0.5)

    @staticmethod
    def _range(name: str, value: Union[float, Range], centre: float,
               highest: float) -> Range:
        lowest = 0 if centre else -highest
        if isinstance(value, (int, float)):
            low, high = max(lowest, centre - value), centre + value
        else:
            low, high = value
        if not lowest <= low <= high <= highest:
            raise ValueError(
                f'ColorJitter: {name} must be a number >= 0 or a pair '
                f'(low, high) within [{lowest}, {highest}], but got {value}')
        return float(low), float(high)

    @cache_randomness
    def _random_params(self) -> Optional[List[Tuple[str, float]]]:
        if not self._happens():
            return None
        names = ('brightness', 'contrast', 'saturation', 'hue')
        factors = [np.random.uniform(*getattr(self, name)) for name in names]
        order = np.random.permutation(len(names))
        return [(names[i], factors[i]) for i in order]

    def _change(self, img: np.ndarray,
                params: List[Tuple[str, float]]) -> np.ndarray:
        is_color = img.ndim == 3 and img.shape[2] == 3
        for name, factor in params:
            if name == 'brightness':
                img = _blend(img, factor)
            elif name == 'contrast':
                grey = _grey(img) if is_color else img
                img = _blend(img, factor, shift=cv2.mean(grey)[0])
            elif is_color and name == 'saturation':
                grey = cv2.cvtColor(_grey(img), cv2.COLOR_GRAY2BGR)
                img = _blend(img, factor, other=grey)
            elif is_color and name == 'hue' and factor:
                img = _turn_hue(img, factor)
        return img

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(brightness={self.brightness}, '
                f'contrast={self.contrast}, saturation={self.saturation}, '
                f'hue={self.hue}, prob={self.prob})')


@TRANSFORMS.register_module()
class RandomGrayscale(_RandomColor):
    """Grey image with three equal channels.

    mmcv's transform of this name turns every image into uint8, also those
    it leaves in colour; this one keeps the dtype.

    Args:
        prob (float): Probability to drop the colour. Defaults to 0.2.
    """

    def __init__(self, prob: float = 0.2) -> None:
        super().__init__(prob)

    @cache_randomness
    def _random_params(self) -> Optional[bool]:
        return True if self._happens() else None

    def _change(self, img: np.ndarray, params: bool) -> np.ndarray:
        if img.ndim == 2 or img.shape[2] == 1:
            return img
        return cv2.cvtColor(_grey(img), cv2.COLOR_GRAY2BGR)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob})'


@TRANSFORMS.register_module()
class RandomGaussianBlur(_RandomColor):
    """Gaussian blur of random width.

    Args:
        sigma (tuple[float, float]): Range of the standard deviation in
            pixels. Defaults to (0.1, 2.0).
        prob (float): Probability to blur. Defaults to 0.5.

    Raises:
        ValueError: If the range is not ``0 < low <= high``.
    """

    def __init__(self, sigma: Range = (0.1, 2.0), prob: float = 0.5) -> None:
        super().__init__(prob)
        low, high = sigma
        if not 0 < low <= high:
            raise ValueError('RandomGaussianBlur: sigma must be (low, high) '
                             f'with 0 < low <= high, but got {sigma}')
        self.sigma = (low, high)

    @cache_randomness
    def _random_params(self) -> Optional[float]:
        return np.random.uniform(*self.sigma) if self._happens() else None

    def _change(self, img: np.ndarray, params: float) -> np.ndarray:
        return cv2.GaussianBlur(img, (0, 0), params)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(sigma={self.sigma}, prob={self.prob})'


@TRANSFORMS.register_module()
class RandomCutout(_RandomColor):
    """Paint rectangles over the image and leave every label as it is.

    The teacher sees the object, the student has to predict it under the
    patch: that is the consistency signal. mmdet's ``RandomErasing`` also
    erases ground truth, but pseudo-labels do not exist yet when it runs, so
    labelled and unlabelled images would be taught different things.

    Args:
        num_patches (int | tuple[int, int]): Number of patches, or the range
            (both ends included) to draw it from. Defaults to (1, 3).
        ratio (tuple[float, float]): Range of a patch's width and height,
            each drawn alone, as a share of the image's. Defaults to
            (0.05, 0.2).
        fill (float | tuple[float, ...] | str): Value, one value per channel,
            or 'noise' for uniform random pixels. Defaults to 114.
        prob (float): Probability to paint at all. Defaults to 0.5.

    Raises:
        ValueError: If a range or ``fill`` is not as above.
    """

    def __init__(self,
                 num_patches: Union[int, Tuple[int, int]] = (1, 3),
                 ratio: Range = (0.05, 0.2),
                 fill: Union[float, Sequence[float], str] = 114,
                 prob: float = 0.5) -> None:
        super().__init__(prob)
        if isinstance(num_patches, int):
            num_patches = (num_patches, num_patches)
        if not 0 <= num_patches[0] <= num_patches[1]:
            raise ValueError(
                'RandomCutout: num_patches must be a number >= 0 or a pair '
                f'(low, high), but got {num_patches}')
        if not 0 < ratio[0] <= ratio[1] <= 1:
            raise ValueError('RandomCutout: ratio must be (low, high) with '
                             f'0 < low <= high <= 1, but got {ratio}')
        if isinstance(fill, str) and fill != 'noise':
            raise ValueError('RandomCutout: fill must be a value, one value '
                             f"per channel or 'noise', but got {fill!r}")
        self.num_patches = tuple(num_patches)
        self.ratio = tuple(ratio)
        self.fill = fill

    @cache_randomness
    def _random_params(self) -> Optional[Tuple[np.ndarray, int]]:
        """Patches (left, top, width, height) as shares; the noise's seed."""
        if not self._happens():
            return None
        low, high = self.num_patches
        num = np.random.randint(low, high + 1)
        size = np.random.uniform(*self.ratio, (num, 2))
        corner = np.random.rand(num, 2) * (1 - size)
        seed = np.random.randint(2**31)
        return np.concatenate([corner, size], 1), seed

    def _change(self, img: np.ndarray, params: Tuple[np.ndarray,
                                                     int]) -> np.ndarray:
        patches, seed = params
        noise = np.random.RandomState(seed)
        img = img.copy()
        height, width = img.shape[:2]
        for left, top, share_w, share_h in patches:
            x1, y1 = int(left * width), int(top * height)
            x2 = x1 + max(1, round(share_w * width))
            y2 = y1 + max(1, round(share_h * height))
            patch = img[y1:y2, x1:x2]
            if self.fill == 'noise':
                patch[...] = noise.randint(0, 256, patch.shape)
            else:
                patch[...] = self.fill
        return img

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(num_patches={self.num_patches}, '
                f'ratio={self.ratio}, fill={self.fill!r}, prob={self.prob})')


@TRANSFORMS.register_module()
class StrongColor(Compose):
    """The strong view's colours: jitter, then grey, then blur.

    It moves nothing, so weak and strong view share their geometry and
    pseudo-labels need no warping. The defaults are those of UniMatch
    (https://arxiv.org/abs/2208.09910, supplementary material); guided
    distillation uses (0.4, 0.4, 0.4, 0.1) for the four ranges.

    Args:
        brightness (float | tuple[float, float]): See :class:`ColorJitter`.
            Defaults to 0.5.
        contrast (float | tuple[float, float]): Defaults to 0.5.
        saturation (float | tuple[float, float]): Defaults to 0.5.
        hue (float | tuple[float, float]): Defaults to 0.25.
        jitter_prob (float): Defaults to 0.8.
        gray_prob (float): Defaults to 0.2.
        blur_prob (float): Defaults to 0.5.
        blur_sigma (tuple[float, float]): In pixels. Defaults to (0.1, 2.0).
        cutout (dict, optional): Arguments of :class:`RandomCutout`, which
            then comes last. Defaults to None, no cutout.
    """

    records_homography = True

    def __init__(self,
                 brightness: Union[float, Range] = 0.5,
                 contrast: Union[float, Range] = 0.5,
                 saturation: Union[float, Range] = 0.5,
                 hue: Union[float, Range] = 0.25,
                 jitter_prob: float = 0.8,
                 gray_prob: float = 0.2,
                 blur_prob: float = 0.5,
                 blur_sigma: Range = (0.1, 2.0),
                 cutout: Optional[dict] = None) -> None:
        transforms = [
            ColorJitter(brightness, contrast, saturation, hue, jitter_prob),
            RandomGrayscale(gray_prob),
            RandomGaussianBlur(blur_sigma, blur_prob)
        ]
        if cutout is not None:
            transforms.append(RandomCutout(**cutout))
        super().__init__(transforms)


def _grey(img: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(img, cv2.COLOR_BGR2GRAY)


def _blend(img: np.ndarray,
           factor: float,
           other: Optional[np.ndarray] = None,
           shift: float = 0.) -> np.ndarray:
    """``factor * img + (1 - factor) * (other or shift)``, within 0-255."""
    if other is None:
        out = cv2.addWeighted(img, factor, img, 0, (1 - factor) * shift)
    else:
        out = cv2.addWeighted(img, factor, other, 1 - factor, 0)
    # OpenCV saturates uint8 by itself.
    return out if out.dtype == np.uint8 else np.clip(out, 0, 255, out=out)


def _turn_hue(img: np.ndarray, turns: float) -> np.ndarray:
    if img.dtype == np.uint8:
        # The full range makes one turn 256, so that uint8 wraps around.
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV_FULL)
        hsv[..., 0] += np.uint8(round(turns * 256) % 256)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
    hsv = cv2.cvtColor(img / np.float32(255), cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0] + np.float32(360 * turns)) % 360
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * 255
