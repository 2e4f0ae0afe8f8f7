# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The connected pieces of the classes of a label map."""
from typing import List, Optional, Tuple

import cv2
import numpy as np
import torch
from torch import Tensor

from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL


def number_pieces(label: Tensor,
                  background: Optional[int] = 0,
                  min_area: int = 1) -> Tuple[Tensor, List[int]]:
    """Number the connected pieces of one class in a label map.

    Args:
        label (Tensor): (H, W) int64; 255 is no class.
        background (int, optional): Class that is left out. Defaults to 0.
            None: there is none.
        min_area (int): Pieces of fewer pixels get no number. Defaults to 1.

    Returns:
        tuple[Tensor, list[int]]: (H, W) int64, -1 where nothing is numbered,
        else an index into the classes, which come second. Pieces are
        connected over edges and corners.
    """
    array = label.cpu().numpy()
    numbers = np.full(array.shape, -1)
    classes: List[int] = []
    for c in np.unique(array).tolist():
        if c in (background, IGNORE_LABEL):
            continue
        count, parts, stats, _ = cv2.connectedComponentsWithStats(
            (array == c).astype(np.uint8))
        large = 1 + np.flatnonzero(
            stats[1:, cv2.CC_STAT_AREA] >= min_area)
        table = np.full(count, -1)
        table[large] = len(classes) + np.arange(len(large))
        found = table[parts]
        numbers[found >= 0] = found[found >= 0]
        classes += [c] * len(large)
    return torch.from_numpy(numbers).to(label), classes


def piece_masks(numbers: Tensor, index: Tensor) -> Tensor:
    """Return some of the pieces as masks.

    Args:
        numbers (Tensor): (H, W) of :func:`number_pieces`.
        index (Tensor): (K,) int64, which.

    Returns:
        Tensor: (K, H, W) bool.
    """
    return numbers == index.to(numbers)[:, None, None]
