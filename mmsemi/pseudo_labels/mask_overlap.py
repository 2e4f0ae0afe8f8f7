# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Overlap of binary masks, without a loop over pairs."""
import torch
from torch import Tensor


def mask_iou(masks: Tensor,
             others: Tensor,
             iscrowd: bool = False,
             chunk_pixels: int = 1 << 18) -> Tensor:
    """Intersection over union of every mask with every other.

    Args:
        masks (Tensor): Masks (N, H, W), bool.
        others (Tensor): Masks (M, H, W), bool, same size.
        iscrowd (bool): Divide by the area of ``masks`` instead of the union,
            as COCO does for crowd regions. Defaults to False.
        chunk_pixels (int): Pixels handled at a time; bounds the float copy
            of the masks. Defaults to 262,144.

    Returns:
        Tensor: IoU (N, M) in [0, 1], float32; 0 where both are empty.

    Raises:
        ValueError: If the sizes differ.
    """
    if masks.shape[1:] != others.shape[1:]:
        raise ValueError('mask_iou needs masks of one size, got '
                         f'{tuple(masks.shape)} and {tuple(others.shape)}.')
    a, b = masks.flatten(1), others.flatten(1)
    with torch.autocast(masks.device.type, enabled=False):
        inter = torch.zeros((len(a), len(b)), device=masks.device)
        for i in range(0, a.shape[1], chunk_pixels):
            part = a[:, i:i + chunk_pixels].float()
            other = part
            if others is not masks:
                other = b[:, i:i + chunk_pixels].float()
            inter += part @ other.t()
        area_a = a.sum(1).float()[:, None]
        union = area_a if iscrowd else area_a + b.sum(1).float() - inter
        return inter / union.clamp(min=1)
