# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What every generator of mask proposals is."""
from abc import ABCMeta, abstractmethod
from typing import Any, Dict, NamedTuple

import numpy as np


class GeneratedMasks(NamedTuple):
    """Mask proposals of one image, best first.

    Attributes:
        masks: bool (N, H, W); N may be 0, none is empty.
        predicted_iou: float32 (N,), the generator's estimate of each mask's
            quality; NaN where it gives none.
        stability: float32 (N,) in [0, 1], how little each mask depends on
            the generator's own threshold or scale.
    """
    masks: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray


class MaskGenerator(metaclass=ABCMeta):
    """Segments everything in an image, without knowing classes."""

    @property
    @abstractmethod
    def settings(self) -> Dict[str, Any]:
        """dict: Whatever decides about the masks, as JSON can hold it."""

    @abstractmethod
    def generate(self, image: np.ndarray) -> GeneratedMasks:
        """Find the proposals of an image.

        Args:
            image (np.ndarray): (H, W, 3) uint8, RGB.

        Returns:
            GeneratedMasks: The proposals.

        Raises:
            ValueError: If ``image`` is none.
        """


def check_image(image: np.ndarray) -> None:
    """Raise ValueError unless an image is (H, W, 3) uint8."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or \
            image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        got = getattr(image, 'shape', image)
        raise ValueError('A mask generator needs an image of shape (H, W, 3),'
                         f' uint8, got {type(image).__name__} {got}.')
