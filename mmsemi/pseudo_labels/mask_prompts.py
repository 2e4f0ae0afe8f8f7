# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Prompts for SAM, made of coarse masks.

Y. Lin et al., SAMRefiner, ICLR 2025: a point deep inside the mask and one
far outside of it, its box, and a soft version of the mask itself.
"""
from typing import NamedTuple, Tuple

import cv2
import numpy as np
import torch
from torch import Tensor

from mmsemi.structures.view_geometry import masks_to_boxes

#: Label of a point that is none.
GAP = -10


class MaskPrompts(NamedTuple):
    """Prompts of N masks.

    Attributes:
        points: (N, 2, 2) float, x and y in pixels: one inside, one outside.
        point_labels: (N, 2): 1, and 0 or -10 if nothing in the box is
            outside.
        boxes: (N, 4) float, x1, y1, x2, y2, tight.
        logits: (N, H, W) float, the soft masks.
    """
    points: Tensor
    point_labels: Tensor
    boxes: Tensor
    logits: Tensor


def mask_prompts(masks: Tensor,
                 strength: float = 30.,
                 gamma: float = 4.) -> MaskPrompts:
    """Make prompts of masks.

    The soft mask is ``-strength`` outside and, inside, ``strength * exp(-(d
    - d_max)^2 / (area / gamma))``, where ``d`` is the distance to the
    nearest pixel outside (what lies beyond the image counts as outside):
    the middle is trusted most.

    Args:
        masks (Tensor): (N, H, W) bool, none empty.
        strength (float): Largest logit. Defaults to 30, as in the released
            API.
        gamma (float): How fast trust falls towards the rim. Defaults to 4.

    Returns:
        MaskPrompts: On the device of the masks.
    """
    boxes = masks_to_boxes(masks)
    points, labels, logits = [], [], []
    for mask, box in zip(masks.cpu().numpy(), boxes.int().tolist()):
        x1, y1, x2, y2 = box
        part = mask[y1:y2, x1:x2]
        inside = _distance(np.pad(part, 1))[1:-1, 1:-1]
        outside = _distance(~part)
        y, x = _peak(inside)
        points.append([(x1 + x, y1 + y)])
        y, x = _peak(outside)
        points[-1].append((x1 + x, y1 + y))
        labels.append((1, 0 if outside.max() > 0 else GAP))
        trust = np.exp(-(inside - inside.max())**2 * gamma / part.sum())
        soft = np.full(mask.shape, -strength, dtype=np.float32)
        soft[y1:y2, x1:x2] = np.where(part, strength * trust, -strength)
        logits.append(soft)
    device = masks.device
    return MaskPrompts(
        torch.tensor(points, dtype=torch.float32, device=device),
        torch.tensor(labels, device=device), boxes,
        torch.from_numpy(np.stack(logits)).to(device))


def _distance(mask: np.ndarray) -> np.ndarray:
    """Exact Euclidean distance of each pixel to the nearest one outside."""
    if mask.all():
        return np.full(mask.shape, float(max(mask.shape)), dtype=np.float32)
    return cv2.distanceTransform(
        np.ascontiguousarray(mask, dtype=np.uint8), cv2.DIST_L2,
        cv2.DIST_MASK_PRECISE)


def _peak(values: np.ndarray) -> Tuple[int, int]:
    row, column = np.unravel_index(values.argmax(), values.shape)
    return int(row), int(column)
