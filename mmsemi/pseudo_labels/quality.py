# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""How good pseudo-labels are, where hidden labels tell."""
from dataclasses import dataclass
from typing import Optional, Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from .mask_overlap import mask_iou


@dataclass
class PseudoLabelQuality:
    """Counts over some images.

    Args:
        num_pseudo (int): Pseudo-instances.
        num_hidden (int): Hidden ground-truth instances.
        num_matched (int): Pseudo-instances that match one.
        iou_sum (float): Sum of mask IoU over the matches.
    """

    num_pseudo: int = 0
    num_hidden: int = 0
    num_matched: int = 0
    iou_sum: float = 0.

    @property
    def precision(self) -> float:
        """float: Matched share of the pseudo-instances; NaN without any."""
        return _ratio(self.num_matched, self.num_pseudo)

    @property
    def recall(self) -> float:
        """float: Matched share of the hidden instances; NaN without any."""
        return _ratio(self.num_matched, self.num_hidden)

    @property
    def iou(self) -> float:
        """float: Mean IoU of the matches; NaN without any."""
        return _ratio(self.iou_sum, self.num_matched)

    def __add__(self, other: 'PseudoLabelQuality') -> 'PseudoLabelQuality':
        return PseudoLabelQuality(self.num_pseudo + other.num_pseudo,
                                  self.num_hidden + other.num_hidden,
                                  self.num_matched + other.num_matched,
                                  self.iou_sum + other.iou_sum)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float('nan')


def _masks_of(instances: InstanceData, shape: Sequence[int],
              device: torch.device) -> Tensor:
    masks = instances.masks
    if not isinstance(masks, Tensor):
        masks = masks.to_tensor(torch.bool, device)
    return masks[:, :shape[0], :shape[1]].to(device)


def _overlaps(pseudo_label: InstanceData, others: InstanceData,
              iscrowd: bool) -> Tensor:
    device = pseudo_label.labels.device
    if 'masks' in pseudo_label and 'masks' in others:
        shape = pseudo_label.masks.shape[1:]
        return mask_iou(pseudo_label.masks, _masks_of(others, shape, device),
                        iscrowd)
    from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
    return bbox_overlaps(
        pseudo_label.bboxes.float(),
        get_box_tensor(others.bboxes).to(device).float(),
        mode='iof' if iscrowd else 'iou')


def measure_pseudo_labels(pseudo_label: InstanceData,
                          hidden: InstanceData,
                          ignored: Optional[InstanceData] = None,
                          iou_thr: float = 0.5) -> PseudoLabelQuality:
    """Compare the pseudo-labels of one image with its hidden labels.

    Matching is greedy by score, one to one, within a class, as in the COCO
    evaluation at one threshold.

    Args:
        pseudo_label (InstanceData): ``labels`` (N,), ``scores`` (N,),
            ``masks`` (N, H, W) or, without masks, ``bboxes`` (N, 4).
        hidden (InstanceData): Ground truth of the same view: ``labels``
            (M,), ``masks`` (BitmapMasks or tensor, padded or not) or
            ``bboxes``.
        ignored (InstanceData, optional): Crowd regions, fields as in
            ``hidden``. A pseudo-instance without a match that lies in one
            of its class, by at least ``iou_thr`` of its own area, does not
            count. Defaults to None.
        iou_thr (float): Least IoU of a match, in (0, 1]. Defaults to 0.5.

    Returns:
        PseudoLabelQuality: The counts.

    Raises:
        ValueError: If ``hidden`` carries no labels or ``iou_thr`` is out of
            range.
    """
    if not 0 < iou_thr <= 1:
        raise ValueError(f'iou_thr={iou_thr}; allowed are numbers above 0 '
                         'up to 1.')
    if 'labels' not in hidden:
        raise ValueError(
            'The unlabelled view carries no hidden labels to measure '
            'against; load annotations in the unlabelled pipeline or set '
            'hidden_label_interval=0.')
    quality = PseudoLabelQuality(
        num_pseudo=len(pseudo_label), num_hidden=len(hidden))
    if len(pseudo_label) == 0:
        return quality
    order = pseudo_label.scores.argsort(descending=True, stable=True)
    matched = torch.zeros(len(pseudo_label), dtype=torch.bool)
    if len(hidden) > 0:
        ious = _overlaps(pseudo_label, hidden, iscrowd=False)
        ious = _within_class(ious, pseudo_label, hidden)[order].cpu()
        for i, row in enumerate(ious):
            iou, match = row.max(0)
            if iou >= iou_thr:
                matched[i] = True
                quality.iou_sum += float(iou)
                ious[:, match] = -1
        quality.num_matched = int(matched.sum())
    if ignored is not None and len(ignored) > 0:
        shares = _overlaps(pseudo_label, ignored, iscrowd=True)
        shares = _within_class(shares, pseudo_label, ignored)[order].cpu()
        in_crowd = (shares >= iou_thr).any(1) & ~matched
        quality.num_pseudo -= int(in_crowd.sum())
    return quality


def _within_class(overlaps: Tensor, pseudo_label: InstanceData,
                  others: InstanceData) -> Tensor:
    labels = others.labels.to(pseudo_label.labels.device)
    return overlaps.masked_fill(pseudo_label.labels[:, None] != labels, -1)
