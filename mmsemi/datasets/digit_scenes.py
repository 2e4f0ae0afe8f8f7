# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Scenes composed of real handwritten digits.

The handwriting is scikit-learn's copy of the UCI optical recognition of
handwritten digits data: 1,797 digits of 8 x 8 pixels.
"""
import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
from sklearn.datasets import load_digits

DIGIT_CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six',
                 'seven', 'eight', 'nine')
# Height of a digit as a share of the scene, for three digits a scene.
DIGIT_SHARE = (0.32, 0.5)
MIN_DIGIT_PIXELS = 8
SPLITS = ('train', 'val')


class DigitScene(NamedTuple):
    """One composed scene.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        masks: bool (N, H, W), visible pixels of each digit; no two overlap.
        labels: int64 (N,), the digits 0-9.
        colors: N names of colours; empty where digits have any colour.
    """
    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    colors: Tuple[str, ...] = ()


def class_frequencies(long_tail: float = 1.0) -> np.ndarray:
    """Return how often each class is drawn.

    Args:
        long_tail (float): Frequency of class 0 over frequency of class 9,
            at least 1; the classes between decay exponentially. Defaults to
            1.0, which is balanced.

    Returns:
        np.ndarray: float64 (10,), sums to one.

    Raises:
        ValueError: If ``long_tail`` is not a finite number of at least 1.
    """
    if (isinstance(long_tail, bool) or not isinstance(long_tail, (int, float))
            or not math.isfinite(long_tail) or long_tail < 1):
        raise ValueError('long_tail must be a finite number of at least 1 '
                         '(frequency of the first class over that of the '
                         f'last), got {long_tail!r}')
    num_classes = len(DIGIT_CLASSES)
    weights = float(long_tail)**(-np.arange(num_classes) / (num_classes - 1))
    return weights / weights.sum()


def load_handwriting(split: str) -> List[np.ndarray]:
    """Return the handwriting of one side, class by class.

    The last quarter of every class is kept for validation. The digits lie
    writer by writer, so validation also sees other writers; the split does
    not depend on any seed, so no two data sets mix the sides.

    Args:
        split (str): 'train' or 'val'.

    Returns:
        list[np.ndarray]: Ten arrays float32 (N_c, 8, 8) of ink in [0, 1].

    Raises:
        ValueError: If ``split`` is neither 'train' nor 'val'.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    digits = load_digits()
    ink = (digits.images / 16).astype(np.float32)
    pool = []
    for label in range(len(DIGIT_CLASSES)):
        samples = ink[digits.target == label]
        cut = len(samples) - len(samples) // 4
        pool.append(samples[:cut] if split == 'train' else samples[cut:])
    return pool


class DigitSceneComposer:
    """Composes scenes from one side of the handwriting.

    A digit is enlarged smoothly by a random factor, turned by up to 15
    degrees, coloured, and laid on a graded, textured and noisy background
    that is darker than it. Later digits hide earlier ones.

    Args:
        split (str): 'train' or 'val', the handwriting to use.
        image_size (int): Height and width of a scene in pixels. Defaults
            to 64.
        digits_per_scene (tuple[int, int]): Least and most digits in a
            scene. Defaults to (1, 3).
        long_tail (float): See :func:`class_frequencies`. Defaults to 1.0.
        max_overlap (float): Largest share of a digit's pixels that other
            digits may hide, in [0, 0.5]. Defaults to 0.1.

    Raises:
        ValueError: If a value is out of its range.
    """

    def __init__(self,
                 split: str,
                 image_size: int = 64,
                 digits_per_scene: Tuple[int, int] = (1, 3),
                 long_tail: float = 1.0,
                 max_overlap: float = 0.1) -> None:
        _check_scene_options(image_size, digits_per_scene, max_overlap)
        self.pool = load_handwriting(split)
        self.frequencies = class_frequencies(long_tail)
        self.image_size = image_size
        self.digits_per_scene = tuple(digits_per_scene)
        self.max_overlap = max_overlap
        crowd = _crowd_factor(digits_per_scene[1])
        self.digit_heights = tuple(share * image_size * crowd
                                   for share in DIGIT_SHARE)

    def compose(self, rng: np.random.Generator) -> DigitScene:
        """Compose one scene.

        Args:
            rng (np.random.Generator): Source of every draw.

        Returns:
            DigitScene: Image, masks and labels.

        Raises:
            RuntimeError: If the digits find no place in 200 layouts.
        """
        low, high = self.digits_per_scene
        num_digits = int(rng.integers(low, high + 1))
        labels = self._labels(num_digits, rng)
        image = self._background(rng)
        for _ in range(200):
            layout = self._layout(labels, rng)
            if layout is not None:
                break
        else:
            raise RuntimeError(
                f'{num_digits} digits found no place in a scene of '
                f'{self.image_size} pixels; raise image_size or max_overlap '
                'or lower digits_per_scene')
        masks = np.zeros((num_digits, ) + image.shape[:2], dtype=bool)
        for i, (window, alpha) in enumerate(layout):
            region = image[window]
            colour = self._colour(i, region.mean(axis=(0, 1)), rng)
            weight = alpha[..., None]
            image[window] = region * (1 - weight) + colour * weight
            ink = alpha > 0.5
            masks[:i, window[0], window[1]] &= ~ink
            masks[i, window[0], window[1]] = ink
        image += rng.normal(0, rng.uniform(2, 8), image.shape)
        image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        return DigitScene(image, masks, labels.astype(np.int64))

    def _labels(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Return the digits 0-9 of a scene."""
        return rng.choice(len(DIGIT_CLASSES), size=number, p=self.frequencies)

    def _colour(self, index: int, background: np.ndarray,
                rng: np.random.Generator) -> np.ndarray:
        """Return the colour float64 (3,) of one digit."""
        return _stroke_colour(background, rng)

    def _height(self, rng: np.random.Generator) -> float:
        """Return the height of one digit in pixels."""
        return rng.uniform(*self.digit_heights)

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """Return float64 (H, W, 3): two colours graded, with blotches."""
        size = self.image_size
        start = rng.uniform(0, 110, 3)
        end = np.clip(start + rng.uniform(-50, 50, 3), 0, 130)
        angle = rng.uniform(0, 2 * np.pi)
        axis = np.linspace(-0.5, 0.5, size)
        ramp = np.cos(angle) * axis[None] + np.sin(angle) * axis[:, None]
        ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
        cells = int(rng.integers(3, 12))
        blotches = rng.normal(0, rng.uniform(0, 12), (cells, cells))
        blotches = cv2.resize(
            blotches, (size, size), interpolation=cv2.INTER_CUBIC)
        return start + (end - start) * ramp[..., None] + blotches[..., None]

    def _layout(self, labels: np.ndarray, rng: np.random.Generator
                ) -> Optional[List[Tuple[Tuple[slice, slice], np.ndarray]]]:
        """Place the digits, or return None where one finds no place."""
        size = self.image_size
        placed, visible, areas = [], [], []
        for label in labels:
            alpha = self._render_digit(int(label), rng)
            height, width = alpha.shape
            if height > size or width > size:
                return None
            ink = alpha > 0.5
            for _ in range(20):
                top = int(rng.integers(0, size - height + 1))
                left = int(rng.integers(0, size - width + 1))
                window = (slice(top, top + height), slice(left, left + width))
                left_over = [
                    mask.sum() - (mask[window] & ink).sum() for mask in visible
                ]
                if all(rest >= (1 - self.max_overlap) * area
                       for rest, area in zip(left_over, areas)):
                    break
            else:
                return None
            for mask in visible:
                mask[window] &= ~ink
            mask = np.zeros((size, size), dtype=bool)
            mask[window] = ink
            visible.append(mask)
            areas.append(ink.sum())
            placed.append((window, alpha))
        return placed

    def _render_digit(self, label: int,
                      rng: np.random.Generator) -> np.ndarray:
        """Return the coverage float32 (h, w) in [0, 1] of one digit."""
        samples = self.pool[label]
        ink = np.pad(samples[int(rng.integers(len(samples)))], 2)
        scale = self._height(rng) / 8
        stretch = np.exp(rng.uniform(-0.15, 0.15))
        angle = np.deg2rad(rng.uniform(-15, 15))
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)],
                                   [np.sin(angle),
                                    np.cos(angle)]]) * [stretch, 1 / stretch]
        canvas = int(np.ceil(scale * 18))
        source_centre = np.full(2, (ink.shape[0] - 1) / 2)
        target_centre = np.full(2, (canvas - 1) / 2)
        shift = target_centre - linear @ source_centre
        ink = cv2.warpAffine(
            ink,
            np.column_stack([linear, shift]), (canvas, canvas),
            flags=cv2.INTER_CUBIC)
        # The pen's edge is one source pixel wide; a steeper ramp keeps
        # strokes crisp when they are enlarged.
        alpha = np.clip((ink - 0.25) / 0.35, 0, 1)
        rows, = np.nonzero(alpha.any(axis=1))
        columns, = np.nonzero(alpha.any(axis=0))
        return alpha[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def check_int(field: str, value: int, minimum: int) -> None:
    """Refuse what is not an integer of at least ``minimum``.

    Args:
        field (str): Name of the field, for the message.
        value (int): The value.
        minimum (int): Least allowed value.

    Raises:
        ValueError: If the value is not allowed.
    """
    if (isinstance(value, bool) or not isinstance(value, int)
            or value < minimum):
        raise ValueError(f'{field} must be an integer of at least {minimum}, '
                         f'got {value!r}')


def _stroke_colour(background: np.ndarray,
                   rng: np.random.Generator) -> np.ndarray:
    """Return a colour that is brighter than the background.

    Args:
        background (np.ndarray): Mean colour (3,) under the digit, 0-255.
        rng (np.random.Generator): Source of the draws.

    Returns:
        np.ndarray: float64 (3,).
    """
    for _ in range(50):
        colour = rng.uniform(80, 255, 3)
        if colour.mean() - background.mean() > 70:
            return colour
    return np.full(3, 255.0)


def _crowd_factor(max_digits: int) -> float:
    """Return by how much digits grow or shrink so that all find a place."""
    return min(1.25, math.sqrt(3 / max_digits))


def _check_scene_options(image_size: int, digits_per_scene: Sequence[int],
                         max_overlap: float) -> None:
    try:
        low, high = digits_per_scene
    except (TypeError, ValueError):
        raise ValueError('digits_per_scene must be two integers (least, '
                         f'most), got {digits_per_scene!r}') from None
    check_int('digits_per_scene[0]', low, 1)
    check_int('digits_per_scene[1]', high, 1)
    if low > high:
        raise ValueError('digits_per_scene must be (least, most) with least '
                         f'<= most, got {digits_per_scene!r}')
    smallest = math.ceil(MIN_DIGIT_PIXELS /
                         (DIGIT_SHARE[0] * _crowd_factor(high)))
    if (isinstance(image_size, bool) or not isinstance(image_size, int)
            or image_size < smallest):
        raise ValueError(
            f'image_size must be an integer of at least {smallest} pixels for '
            f'up to {high} digits in a scene, so that a digit is at least '
            f'{MIN_DIGIT_PIXELS} pixels high; got {image_size!r}')
    if (isinstance(max_overlap, bool)
            or not isinstance(max_overlap, (int, float))
            or not 0 <= max_overlap <= 0.5):
        raise ValueError('max_overlap must be a number from 0 to 0.5, got '
                         f'{max_overlap!r}')
