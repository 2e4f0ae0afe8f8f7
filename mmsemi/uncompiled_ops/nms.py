# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Non-maximum suppression."""
import torch
from torch import Tensor

from . import common

#: Boxes that NMS compares with all others at a time.
NMS_BLOCK = 512


def _pairwise_iou(rows: Tensor, columns: Tensor, offset: int) -> Tensor:
    """IoU of boxes (M, 4) and (N, 4) in the order of mmcv's arithmetic."""
    row_area, column_area = (
        (boxes[:, 2] - boxes[:, 0] + offset) *
        (boxes[:, 3] - boxes[:, 1] + offset) for boxes in (rows, columns))
    top_left = torch.maximum(rows[:, None, :2], columns[None, :, :2])
    bottom_right = torch.minimum(rows[:, None, 2:], columns[None, :, 2:])
    inter = (bottom_right - top_left + offset).clamp(min=0).prod(-1)
    return inter / (row_area[:, None] + column_area[None] - inter)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float,
        offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes (Tensor): (N, 4), x1, y1, x2, y2 in pixels.
        scores (Tensor): (N,).
        iou_threshold (float): A box goes if its IoU with a kept box of
            higher score is above this.
        offset (int): 0 or 1; a side is ``x2 - x1 + offset`` long.

    Returns:
        Tensor: Kept indices (K,) int64, by falling score.
    """
    boxes, scores = boxes.detach(), scores.detach()
    if boxes.dtype in (torch.float16, torch.bfloat16):
        boxes = boxes.float()
    vision = common.torchvision_ops()
    # torchvision knows no offset.
    if vision is not None and offset == 0:
        return vision.nms(boxes, scores.to(boxes.dtype), iou_threshold)
    order = scores.sort(descending=True)[1]
    kept = [order[:0]]
    while order.numel():
        block, order = order[:NMS_BLOCK], order[NMS_BLOCK:]
        overlaps = _pairwise_iou(boxes[block], boxes[block],
                                 offset) > iou_threshold
        overlaps = overlaps.triu(diagonal=1)
        # A box stays if no box that stays, with a higher score, overlaps it.
        # Each round settles at least the next box, and the answer is the
        # only fixed point.
        stays = ~overlaps.any(0)
        while True:
            update = ~(overlaps & stays[:, None]).any(0)
            if torch.equal(update, stays):
                break
            stays = update
        block = block[stays]
        kept.append(block)
        suppressed = _pairwise_iou(boxes[block], boxes[order],
                                   offset) > iou_threshold
        order = order[~suppressed.any(0)]
    return torch.cat(kept)
