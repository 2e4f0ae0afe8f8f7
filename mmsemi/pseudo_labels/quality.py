# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""How good pseudo-labels are, where hidden labels tell."""
from dataclasses import dataclass
from typing import Iterable, List, Optional, Sequence, Union

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from .outcomes import PredictionOutcomes, judge_predictions


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
    outcomes = judge_predictions(
        pseudo_label, hidden, ignored, iou_thr, crowd_thr=iou_thr)
    matched = outcomes.matches >= 0
    return PseudoLabelQuality(
        num_pseudo=int(outcomes.known.sum()),
        num_hidden=len(hidden),
        num_matched=int(matched.sum()),
        iou_sum=float(outcomes.ious[matched].double().sum()))


def quality_of_groups(
    outcomes: Iterable[PredictionOutcomes],
    groups: Union[Sequence[int], Tensor],
    score_thr: Union[float, Tensor] = 0.,
    num_groups: Optional[int] = None,
) -> List[PseudoLabelQuality]:
    """Measure pseudo-labels of each group of classes, over some images.

    Args:
        outcomes (Iterable[PredictionOutcomes]): One per image, from
            :func:`judge_predictions`. Predictions that cannot be judged do
            not count.
        groups (Sequence[int] or Tensor): Group of each class (C,), from 0,
            such as rare, common and frequent.
        score_thr (float or Tensor): Predictions count that score strictly
            more, as in :class:`FilterByScore`: a number, or (C,) by class.
            What is matched with a higher score stays matched, so the
            matching need not be repeated. Defaults to 0.
        num_groups (int, optional): Number of groups. Defaults to None: as
            many as occur.

    Returns:
        list[PseudoLabelQuality]: One per group, each with ``precision``,
        ``recall`` and ``iou``.
    """
    groups = torch.as_tensor(groups)
    if num_groups is None:
        num_groups = int(groups.max()) + 1
    sums = torch.zeros((4, num_groups), dtype=torch.float64)
    for image in outcomes:
        of_class = groups.to(image.labels.device)
        labels, true_labels = image.labels, image.true_labels
        thr = torch.as_tensor(score_thr, device=labels.device)
        kept = image.scores > (thr[labels] if thr.ndim else thr)
        parts = [
            of_class[labels[kept & image.known]], of_class[true_labels],
            of_class[labels[kept & (image.matches >= 0)]]
        ]
        for row, part in zip(sums, parts):
            row += part.cpu().bincount(minlength=num_groups)
        ious = image.ious.double() * kept
        sums[3].index_add_(0, of_class[labels].cpu(), ious.cpu())
    return [
        PseudoLabelQuality(int(pseudo), int(hidden), int(matched), iou)
        for pseudo, hidden, matched, iou in sums.t().tolist()
    ]
