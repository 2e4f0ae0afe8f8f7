# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Maps of confidence that add a gap which depends on class and bin."""
from typing import Union

import torch
from torch import Tensor

from .calibration_measures import bin_index
from .class_hierarchy import hierarchical_gaps, rising


def fit_bin_map(statistics: Tensor,
                groups: Tensor,
                kappa: Union[float, str] = 20.,
                monotone: bool = True) -> Tensor:
    """Return where each bin lies and what is added there.

    Args:
        statistics (Tensor): (C, B, 3).
        groups (Tensor): Group of each class (C,), int64.
        kappa (float or str): See :func:`hierarchical_gaps`. Defaults to 20.
        monotone (bool): Whether bins that are mapped below a lower one are
            pooled with it. Defaults to True.

    Returns:
        Tensor: Mean confidence and gap of every bin (C, B, 2), float64; an
        empty bin lies in its middle.
    """
    gaps = hierarchical_gaps(statistics, groups, kappa)
    count, confidence, _ = statistics.unbind(-1)
    num_bins = count.shape[1]
    middle = torch.arange(
        0.5, num_bins, dtype=torch.float64, device=count.device) / num_bins
    places = (confidence / count).where(count > 0, middle)
    if monotone:
        mapped = places + gaps
        prior = 20. if kappa == 'auto' else kappa
        # Also a bin that weighs nothing must not break the order.
        pooled = rising(mapped, count + prior + 1e-9)
        gaps = gaps.where(pooled == mapped, pooled - places)
    return torch.stack([places, gaps], -1)


def bin_gaps_at(scores: Tensor, labels: Tensor, knots: Tensor,
                interpolate: bool) -> Tensor:
    """Return what is added to confidences.

    Args:
        scores (Tensor): Confidences of any shape, in [0, 1].
        labels (Tensor): Their classes, int64, of the same shape.
        knots (Tensor): From :func:`fit_bin_map`, (C, B, 2).
        interpolate (bool): Whether the gap changes linearly from bin to bin;
            it stays as it is below the first and above the last.

    Returns:
        Tensor: Gaps, float64, of the shape of ``scores``.
    """
    num_classes, num_bins = knots.shape[:2]
    if not interpolate:
        return knots[labels, bin_index(scores, num_bins), 1]
    places, gaps = (part.flatten() for part in knots.unbind(-1))
    # One search for all classes: each has its own stretch of the line.
    scores, first = scores.double(), labels * num_bins
    start = 2. * torch.arange(
        num_classes, dtype=torch.float64, device=knots.device)
    line = places + start.repeat_interleave(num_bins)
    above = torch.searchsorted(line, scores + start[labels]) - first
    low = first + (above - 1).clamp(0, num_bins - 1)
    high = first + above.clamp(0, num_bins - 1)
    length = (places[high] - places[low]).clamp(min=1e-12)
    share = ((scores - places[low]) / length).clamp(0., 1.)
    return gaps[low] + share * (gaps[high] - gaps[low])
