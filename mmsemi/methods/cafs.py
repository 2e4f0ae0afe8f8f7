# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""CAFS: thresholds of the classes from held-out labels.

"CAFS: Class adaptive framework for semi-supervised semantic segmentation",
arXiv 2303.11606. Known from its abstract: a part of the labelled images is
held out, the calibration on it gives each class a threshold of its own, and
classes that do badly there are sampled more often. The formulas are not
public and the code was withdrawn; what follows is our reading, every number
of it an argument:

- the threshold of a class is the smallest confidence t from which on the
  class is calibrated to be right in a share of at least ``precision``. The
  share is that of the pixels with confidence t, smoothed to rise with t
  (``criterion='calibrated'``), or of all pixels with at least t
  (``criterion='cumulative'``), which gives frequent classes low thresholds,
  because their many certain pixels outweigh the uncertain ones;
- an image is drawn in proportion to the sum of 1 - IoU over its classes.
"""
from typing import Optional, Sequence, Union

import torch
from mmengine.dist import all_reduce
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from mmsemi.pseudo_labels import KeepAboveClassThresholds
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL
from .fixmatch import FixMatch

CRITERIA = ('calibrated', 'cumulative')


class ConfidenceHistogram:
    """Right and wrong pixels of each predicted class, by confidence.

    Args:
        num_classes (int): Number of classes C.
        num_bins (int): Bins of equal width over [0, 1]. Defaults to 200.
        device (torch.device, optional): Of the counts. Defaults to None.
    """

    def __init__(self,
                 num_classes: int,
                 num_bins: int = 200,
                 device: Optional[torch.device] = None) -> None:
        self.num_classes = num_classes
        self.num_bins = num_bins
        self.counts = torch.zeros((num_classes, num_bins, 2),
                                  dtype=torch.long,
                                  device=device)
        """Tensor: (C, B, 2), wrong and right pixels."""
        self.num_labels = torch.zeros(
            num_classes, dtype=torch.long, device=device)
        """Tensor: (C,), pixels of each true class."""

    def update(self, confidence: Tensor, predicted: Tensor,
               target: Tensor) -> None:
        """Count the pixels of some images.

        Args:
            confidence (Tensor): In [0, 1], of any shape.
            predicted (Tensor): Predicted classes, int64, of that shape.
            target (Tensor): True classes, int64; 255 is left out.
        """
        known = target != IGNORE_LABEL
        confidence, predicted, target = (
            values[known] for values in (confidence, predicted, target))
        bins = (confidence * self.num_bins).long().clamp(
            max=self.num_bins - 1)
        index = (predicted * self.num_bins + bins) * 2 + (predicted == target)
        self.counts += torch.bincount(
            index, minlength=self.counts.numel()).reshape(self.counts.shape)
        self.num_labels += torch.bincount(target, minlength=self.num_classes)

    def reduce(self) -> None:
        """Sum the counts of all processes."""
        all_reduce(self.counts, 'sum')
        all_reduce(self.num_labels, 'sum')

    def iou(self) -> Tensor:
        """Return the IoU of each class (C,); NaN where it is nowhere."""
        right = self.counts[..., 1].sum(1).double()
        union = self.counts.sum((1, 2)) + self.num_labels - right
        return right / union

    def thresholds(self,
                   precision: float = 0.9,
                   min_pixels: int = 100,
                   default: float = 0.95,
                   limits: Sequence[float] = (0.5, 0.99),
                   criterion: str = 'calibrated') -> Tensor:
        """Return the smallest confidence that is precise enough.

        Args:
            precision (float): Least share of right pixels. Defaults to 0.9.
            min_pixels (int): Least number of pixels from there on. Defaults
                to 100.
            default (float): Threshold of classes that never get there.
                Defaults to 0.95.
            limits (Sequence[float]): Smallest and largest threshold.
                Defaults to (0.5, 0.99).
            criterion (str): Of which pixels the share is: 'calibrated', of
                those with this confidence, by isotonic regression over the
                bins; or 'cumulative', of those with at least it. Defaults to
                'calibrated'.

        Returns:
            Tensor: (C,) float, lower edges of bins.
        """
        # Counted from the most confident bin down.
        above = self.counts.flip(1).cumsum(1).flip(1).double()
        total = above.sum(2)
        if criterion == 'cumulative':
            good = above[..., 1] >= precision * total
        else:
            # Against rounding in the means of pooled bins.
            good = self._calibrated() >= precision - 1e-9
        good &= total >= max(min_pixels, 1)
        edges = torch.arange(
            self.num_bins, device=good.device) / self.num_bins
        found = edges.where(good, torch.inf).amin(1)
        found = found.where(found < torch.inf, default)
        return found.clamp(*limits)

    def _calibrated(self) -> Tensor:
        """Return the share of right pixels by confidence (C, B), rising.

        Empty bins have the share of the filled bin before them, and 0 where
        there is none.
        """
        counts = self.counts.cpu().double()
        total = counts.sum(2)
        shares = torch.zeros_like(total)
        for share, right, weight in zip(shares, counts[..., 1], total):
            filled = weight > 0
            if not filled.any():
                continue
            rising = isotonic_regression(
                (right / weight)[filled].numpy(),
                sample_weight=weight[filled].numpy())
            share[filled] = torch.from_numpy(rising)
        return shares.cummax(1).values.to(self.counts.device)


def oversampling_weights(present: Tensor, iou: Tensor) -> Tensor:
    """Weight images by how badly their classes do.

    Args:
        present (Tensor): (N, C) bool, which classes an image has.
        iou (Tensor): (C,) in [0, 1]; NaN counts as 0.

    Returns:
        Tensor: (N,) float64 that sums to 1; equal if every class is perfect.
    """
    error = 1 - iou.double().nan_to_num(0.)
    weights = (present.double() * error).sum(1)
    if weights.sum() == 0:
        weights = torch.ones_like(weights)
    return weights / weights.sum()


@MODELS.register_module()
class CAFS(FixMatch):
    """FixMatch with class thresholds that held-out labels give.

    :class:`mmsemi.ClassThresholdHook` holds images out, measures the teacher
    on them and sets thresholds and sampling weights.

    Args:
        segmentor (dict or str): The mmseg model.
        pseudo_label_pipeline (Sequence[dict]): Must contain
            ``KeepAboveClassThresholds``, which is the default.
        **kwargs: Arguments of :class:`FixMatch`.

    Raises:
        ValueError: If no stage has class thresholds.
    """

    def __init__(self,
                 segmentor: Union[dict, str],
                 pseudo_label_pipeline: Sequence[dict] = (dict(
                     type='mmsemi.KeepAboveClassThresholds'), ),
                 **kwargs) -> None:
        super().__init__(
            segmentor, pseudo_label_pipeline=pseudo_label_pipeline, **kwargs)
        if not self.threshold_stages:
            raise ValueError(
                'CAFS needs mmsemi.KeepAboveClassThresholds in its '
                'pseudo_label_pipeline; for fixed thresholds use '
                'mmsemi.FixMatch.')

    @property
    def threshold_stages(self) -> list:
        """list: Stages whose thresholds are set from held-out labels."""
        return [
            stage for stage in self.pseudo_label_pipeline.stages
            if isinstance(stage, KeepAboveClassThresholds)
        ]
