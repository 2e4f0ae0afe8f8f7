# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""How well contours are met.

B. Cheng et al., Boundary IoU: improving object-centric image segmentation
evaluation, CVPR 2021, equation 2: the IoU of only those pixels of two masks
that lie within a distance d of the mask's own contour.
"""
from typing import Tuple

import cv2
import numpy as np
import torch
from torch import Tensor


def check_dilation_ratio(dilation_ratio: float) -> None:
    """Raise ValueError unless a width of boundaries can be used.

    Args:
        dilation_ratio (float): Above 0, below 1.
    """
    if not 0 < dilation_ratio < 1:
        raise ValueError(f'dilation_ratio={dilation_ratio}; allowed are '
                         'numbers above 0 and below 1.')


def boundary_width(height: int, width: int, dilation_ratio: float) -> int:
    """Return the distance d for images of a size.

    Args:
        height (int): Height in pixels.
        width (int): Width in pixels.
        dilation_ratio (float): Share of the image's diagonal.

    Returns:
        int: Pixels, at least 1.
    """
    return max(round(dilation_ratio * (height**2 + width**2)**0.5), 1)


def mask_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """Return the pixels of a mask close to its contour.

    Args:
        mask (np.ndarray): (H, W) bool.
        distance (int): Largest distance from a pixel outside of the mask, in
            pixels, diagonal steps counting 1. Outside of the image all is
            outside of the mask, as in the released code.

    Returns:
        np.ndarray: (H, W) bool.
    """
    size = 2 * distance + 1
    inner = cv2.erode(
        mask.astype(np.uint8),
        np.ones((size, size), np.uint8),
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0)
    return mask & (inner == 0)


def boundary_overlaps(prediction: Tensor,
                      target: Tensor,
                      num_classes: int,
                      ignore_index: int = 255,
                      dilation_ratio: float = 0.02) -> Tuple[Tensor, Tensor]:
    """Count the boundary pixels of every class in one image.

    Ignored pixels count nowhere. While boundaries are sought, they are part
    of every mask, so that no boundary runs along them. (The paper has no
    ignored pixels.)

    Args:
        prediction (Tensor): Predicted classes (H, W), integers.
        target (Tensor): True classes (H, W), integers.
        num_classes (int): Number of classes K.
        ignore_index (int): True label of the pixels that do not count.
            Defaults to 255.
        dilation_ratio (float): Width of the boundaries as a share of the
            image's diagonal. Defaults to 0.02, as in the paper.

    Returns:
        tuple[Tensor, Tensor]: Intersection and union of the true and the
        predicted boundary, each (K,) int64. Add them up over images before
        dividing.
    """
    prediction = prediction.detach().cpu().numpy()
    target = target.detach().cpu().numpy()
    ignored = target == ignore_index
    distance = boundary_width(*target.shape, dilation_ratio)
    overlaps = torch.zeros((2, num_classes), dtype=torch.long)
    present = np.union1d(prediction[~ignored], target[~ignored])
    for label in present[(present >= 0) & (present < num_classes)]:
        ours, theirs = (
            mask_boundary((labels == label) | ignored, distance) & ~ignored
            for labels in (prediction, target))
        overlaps[0, int(label)] = int((ours & theirs).sum())
        overlaps[1, int(label)] = int((ours | theirs).sum())
    return overlaps[0], overlaps[1]
