# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""How far confidence is from outcome, per class, from binned sums.

Statistics are tensors (C, B, 3), float64: for class c and bin b the count,
the sum of confidences and the sum of outcomes. A gap is outcome minus
confidence: above 0 a class is under-confident. The bins have equal width and
are closed on the right, (b / B, (b + 1) / B]; 0 falls into the first.
"""
from typing import Optional, Tuple

import torch
from torch import Tensor

# What is added up are multiples of 2 ** -30. Such sums are exact up to 2 **
# 23 predictions in a bin, so they depend neither on the order nor on the
# number of processes.
RESOLUTION = 2.**30


def bin_index(scores: Tensor, num_bins: int) -> Tensor:
    """Return the bin of every confidence.

    Args:
        scores (Tensor): Confidences of any shape, in [0, 1].
        num_bins (int): Number of bins B.

    Returns:
        Tensor: int64, of the shape of ``scores``, from 0 to B - 1.
    """
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    # Edges in the type of the scores: 0.2 is the edge 1 / 5 in either.
    edges = torch.arange(
        1, num_bins, dtype=scores.dtype, device=scores.device) / num_bins
    return torch.bucketize(scores.contiguous(), edges)


def statistic_terms(scores: Tensor,
                    labels: Tensor,
                    outcomes: Tensor,
                    num_bins: int,
                    weights: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
    """Return what each prediction adds to the statistics, and where.

    Args:
        scores (Tensor): Confidences (N,) in [0, 1].
        labels (Tensor): Classes (N,), int64.
        outcomes (Tensor): Outcomes (N,) in [0, 1].
        num_bins (int): Number of bins B.
        weights (Tensor, optional): How much each prediction counts, (N,).
            Defaults to None: 1.

    Returns:
        tuple[Tensor, Tensor]: Cells ``class * B + bin`` (N,), int64, and
        terms (N, 3), float64.
    """
    cells = labels * num_bins + bin_index(scores, num_bins)
    scores, outcomes = scores.double(), outcomes.double()
    terms = torch.stack([torch.ones_like(scores), scores, outcomes], 1)
    if weights is not None:
        terms = terms * weights.double()[:, None]
    return cells, (terms * RESOLUTION).round() / RESOLUTION


def collect_statistics(scores: Tensor,
                       labels: Tensor,
                       outcomes: Tensor,
                       num_classes: int,
                       num_bins: int = 15,
                       weights: Optional[Tensor] = None) -> Tensor:
    """Sum up predictions.

    Args:
        scores (Tensor): Confidences (N,) in [0, 1].
        labels (Tensor): Classes (N,), int64.
        outcomes (Tensor): Outcomes (N,) in [0, 1].
        num_classes (int): Number of classes C.
        num_bins (int): Number of bins B. Defaults to 15.
        weights (Tensor, optional): How much each prediction counts, (N,).
            Defaults to None: 1.

    Returns:
        Tensor: Statistics (C, B, 3), float64.
    """
    statistics = torch.zeros((num_classes * num_bins, 3),
                             dtype=torch.float64,
                             device=scores.device)
    statistics.index_add_(
        0, *statistic_terms(scores, labels, outcomes, num_bins, weights))
    return statistics.view(num_classes, num_bins, 3)


def marginal_statistics(probs: Tensor,
                        labels: Tensor,
                        num_bins: int = 15) -> Tensor:
    """Sum up the probability of every class over all predictions.

    With :func:`calibration_error` this is class-wise calibration error: not
    only the top probability of a prediction counts, in its class, but each
    in its own, with the outcome whether the class is the true one. A soft
    label uses all of them.

    M. Kull et al., Beyond temperature scaling, NeurIPS 2019, class-wise ECE.

    Args:
        probs (Tensor): Probabilities (N, C).
        labels (Tensor): True classes (N,), int64; others than 0 to C - 1,
            such as background, are none of the classes.
        num_bins (int): Number of bins B. Defaults to 15.

    Returns:
        Tensor: Statistics (C, B, 3), float64.
    """
    num_classes = probs.shape[1]
    classes = torch.arange(num_classes, device=probs.device)
    outcomes = labels[:, None] == classes
    return collect_statistics(
        probs.flatten(),
        classes.expand_as(outcomes).flatten(), outcomes.flatten(), num_classes,
        num_bins)


def class_counts(statistics: Tensor) -> Tensor:
    """Return the (weighted) number of predictions of each class, (C,)."""
    return statistics[..., 0].sum(1)


def bin_gaps(statistics: Tensor) -> Tensor:
    """Return outcome minus confidence in every bin, (C, B); 0 if empty."""
    count, confidence, outcome = statistics.unbind(-1)
    gaps = (outcome - confidence) / count
    return gaps.where(count > 0, torch.zeros_like(gaps))


def calibration_error(statistics: Tensor,
                      signed: bool = False,
                      min_count: float = 0.) -> Tensor:
    """Return the class-conditional expected calibration error (CCECE).

    The mean of the gaps of the bins, weighted by their counts. Signed, it is
    mean outcome minus mean confidence whatever the bins are, and gaps of
    both signs cancel each other.

    F. Porcher et al., Better (pseudo-)labels for semi-supervised instance
    segmentation, 2024. The paper's definition is not public in detail; here
    predictions are grouped by their predicted class.

    Args:
        statistics (Tensor): (C, B, 3).
        signed (bool): Whether gaps keep their sign. Defaults to False.
        min_count (float): Classes with fewer predictions are not measured.
            Defaults to 0.

    Returns:
        Tensor: (C,), float64; NaN for classes without predictions.
    """
    count, confidence, outcome = statistics.unbind(-1)
    gap = outcome - confidence
    total = class_counts(statistics)
    error = (gap if signed else gap.abs()).sum(1) / total
    return error.where((total > 0) & (total >= min_count),
                       torch.full_like(error, torch.nan))


def null_calibration_error(statistics: Tensor) -> Tensor:
    """Return the calibration error that luck gives a calibrated class.

    With few predictions the absolute error is far from 0 even where
    confidence is right. In each bin the number of right predictions is
    taken to be binomial with the mean confidence of the bin; its mean
    absolute deviation has a closed form (de Moivre). Counts are rounded to
    whole numbers, as the form asks.

    Args:
        statistics (Tensor): (C, B, 3).

    Returns:
        Tensor: (C,), float64; NaN for classes without predictions.
    """
    count, confidence, _ = statistics.unbind(-1)
    rate = (confidence / count).nan_to_num(0.).clamp(0., 1.)
    deviation = mean_absolute_deviation(count.round().clamp(min=1.), rate)
    return (count * deviation).sum(1) / class_counts(statistics)


def mean_absolute_deviation(count: Tensor, rate: Tensor) -> Tensor:
    """Return E|k / n - p| of a binomial k, exactly.

    Args:
        count (Tensor): n, whole numbers from 1, float64.
        rate (Tensor): p in [0, 1], of the same shape.

    Returns:
        Tensor: Of the same shape.
    """
    above = (count * rate).floor() + 1
    log_ways = torch.lgamma(count + 1) - torch.lgamma(
        above + 1) - torch.lgamma(count - above + 1)
    log_rate = torch.xlogy(above, rate) + torch.xlogy(count - above + 1,
                                                      1 - rate)
    return 2 * above * (log_ways + log_rate).exp() / count


def excess_calibration_error(statistics: Tensor) -> Tensor:
    """Return the absolute calibration error above that of luck, (C,).

    See :func:`null_calibration_error`; it can be below 0.
    """
    return calibration_error(statistics) - null_calibration_error(statistics)


def debiased_squared_error(statistics: Tensor) -> Tensor:
    """Return the squared calibration error without its bias of few samples.

    Of every bin (k/n - s)^2 - k/n (1 - k/n) / (n - 1), where s is the mean
    confidence, weighted by n; bins with n below 2 cannot be judged and do
    not count. It can be below 0. For outcomes between 0 and 1 the bias taken
    off is too large.

    A. Kumar et al., Verified Uncertainty Calibration, NeurIPS 2019.

    Args:
        statistics (Tensor): (C, B, 3).

    Returns:
        Tensor: (C,), float64; NaN for classes that cannot be judged.
    """
    count, confidence, outcome = statistics.unbind(-1)
    usable = count >= 2
    rate = outcome / count
    error = (rate - confidence / count)**2 - rate * (1 - rate) / (count - 1)
    zero = torch.zeros_like(error)
    return (count * error).where(usable, zero).sum(1) / count.where(
        usable, zero).sum(1)


def group_means(values: Tensor, groups: Tensor,
                num_groups: Optional[int] = None) -> Tensor:
    """Return the means of the groups of classes; each class counts alike.

    Args:
        values (Tensor): By class (C,); NaN does not count.
        groups (Tensor): Group of each class (C,), int64, from 0.
        num_groups (int, optional): Number of groups G. Defaults to None:
            as many as occur.

    Returns:
        Tensor: (G,); NaN for groups without a value.
    """
    if num_groups is None:
        num_groups = int(groups.max()) + 1
    known = ~values.isnan()
    sums = values.new_zeros((2, num_groups))
    sums[0].index_add_(0, groups[known], values[known])
    sums[1].index_add_(0, groups[known], torch.ones_like(values[known]))
    return sums[0] / sums[1]


def pixel_weights(labels: Tensor, per_class: float = 20.) -> Tensor:
    """Return how much the pixels of one image count.

    Neighbouring pixels say the same. So all pixels of a predicted class in
    an image together count as at most ``per_class`` predictions; counted
    one by one they would outweigh every prior.

    Args:
        labels (Tensor): Predicted classes of the pixels that are used, of
            any shape, such as some thousands drawn from those with a label.
        per_class (float): Predictions that a class of one image is worth.
            Defaults to 20.

    Returns:
        Tensor: Weights in (0, 1], float32, of the shape of ``labels``.

    Raises:
        ValueError: If ``per_class`` is not above 0.
    """
    if not per_class > 0:
        raise ValueError(f'per_class={per_class!r}; allowed are numbers '
                         'above 0.')
    _, inverse, counts = labels.unique(
        return_inverse=True, return_counts=True)
    return (per_class / counts).clamp(max=1.)[inverse]
