# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Classes lean on their group, groups on all classes.

What few predictions say about a class is mostly luck. Each estimate is
therefore drawn towards that of the level above, the more the fewer
predictions it has.
"""
from typing import Optional, Sequence, Tuple, Union

import torch
from mmengine.fileio import load
from torch import Tensor

from .calibration_measures import class_counts
from .platt import fit_platt


def frequency_groups(num_images: Union[Sequence[int], Tensor],
                     limits: Sequence[int] = (10, 100)) -> Tensor:
    """Group classes by the number of images they occur in, as LVIS does.

    Args:
        num_images (Sequence[int] or Tensor): Labelled images with the
            class, (C,).
        limits (Sequence[int]): Most images of a class of each group but the
            last, rising. Defaults to (10, 100): 0 is rare, 1 common and 2
            frequent.

    Returns:
        Tensor: Group of each class (C,), int64.
    """
    num_images = torch.as_tensor(num_images).float()
    return torch.bucketize(num_images, torch.tensor(limits).float())


def quantile_groups(num_instances: Union[Sequence[int], Tensor],
                    num_groups: int = 3) -> Tensor:
    """Group classes by number of instances, into groups of about one size.

    Args:
        num_instances (Sequence[int] or Tensor): Labelled instances of each
            class, (C,).
        num_groups (int): Number of groups. Defaults to 3.

    Returns:
        Tensor: Group of each class (C,), int64; 0 has the fewest instances.
        Classes with equally many are in one group, so groups may be empty.

    Raises:
        ValueError: If ``num_groups`` is below 1 or there are no classes.
    """
    num_instances = torch.as_tensor(num_instances).double()
    if num_groups < 1 or len(num_instances) == 0:
        raise ValueError(
            f'Cannot make num_groups={num_groups} groups of '
            f'{len(num_instances)} classes; both start at 1.')
    ordered = num_instances.sort().values
    last = [
        -(-len(ordered) * i // num_groups) - 1 for i in range(1, num_groups)
    ]
    return torch.bucketize(num_instances, ordered[last])


def read_class_groups(ann_file: str,
                      classes: Optional[Sequence[str]] = None) -> Tensor:
    """Group the classes of an annotation file.

    Args:
        ann_file (str): Annotations of the labelled data, in COCO's format.
            Where its categories have LVIS's ``frequency``, the groups are
            rare, common and frequent; else :func:`quantile_groups` of their
            instances, crowd regions left out.
        classes (Sequence[str], optional): Names of the classes that the
            data set uses. Defaults to None: all, in the order of the file.

    Returns:
        Tensor: Group of each class (C,), int64, in the order in which
        mmdet's data sets count labels: that of the file.

    Raises:
        ValueError: If the file has no category of a name.
    """
    annotations = load(ann_file)
    categories = annotations['categories']
    if classes is not None:
        missing = set(classes) - {c['name'] for c in categories}
        if missing:
            raise ValueError(f'{ann_file} has no categories '
                             f'{sorted(missing)}, which are among classes.')
        categories = [c for c in categories if c['name'] in set(classes)]
    if all('frequency' in c for c in categories):
        order = 'rcf'
        return torch.tensor([order.index(c['frequency']) for c in categories])
    counts = {c['id']: 0 for c in categories}
    for annotation in annotations['annotations']:
        category = annotation['category_id']
        if category in counts and not annotation.get('iscrowd', 0):
            counts[category] += 1
    return quantile_groups(list(counts.values()))


def check_groups(groups: Union[Sequence[int], Tensor, None],
                 num_classes: int, field: str) -> Tensor:
    """Return groups as a tensor (C,), int64; None is one group of all.

    Args:
        groups (Sequence[int] or Tensor, optional): Group of each class.
        num_classes (int): Number of classes C.
        field (str): Field of the config, for the message.

    Raises:
        ValueError: If they are not C whole numbers from 0.
    """
    if groups is None:
        return torch.zeros(num_classes, dtype=torch.long)
    given = torch.as_tensor(groups)
    if (given.shape != (num_classes, ) or given.is_floating_point()
            or given.dtype == torch.bool or given.min() < 0):
        raise ValueError(
            f'{field} must name the group of each of the {num_classes} '
            f'classes by whole numbers from 0, got {groups}.')
    return given.long().clone()


def sum_groups(statistics: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Return the statistics (G, B, 3) of groups.

    A product of matrices adds in one order; ``index_add_`` on a GPU in any.
    """
    members = torch.nn.functional.one_hot(groups, num_groups).t().double()
    return (members @ statistics.flatten(1)).view(num_groups,
                                                  *statistics.shape[1:])


def shrink_gaps(gap_sums: Tensor, counts: Tensor, parent: Tensor,
                kappa: Union[float, Tensor]) -> Tensor:
    """Draw mean gaps towards those of the level above.

    Args:
        gap_sums (Tensor): Sums of outcome minus confidence.
        counts (Tensor): Numbers of predictions, of the same shape.
        parent (Tensor): Gaps of the level above.
        kappa (float or Tensor): How many predictions the parent is worth;
            0 for raw gaps, infinite for the parent's alone.

    Returns:
        Tensor: Gaps; without predictions the parent's, or 0 if ``kappa``
        is 0.
    """
    kappa = torch.as_tensor(kappa, dtype=counts.dtype, device=counts.device)
    # Of an infinite kappa, the share is 1 and nothing else matters.
    share = (kappa / (counts + kappa)).where(kappa.isfinite(),
                                             torch.ones_like(counts))
    share = share.nan_to_num(1.)
    raw = (gap_sums / counts).where(counts > 0, torch.zeros_like(counts))
    parent = parent.where(kappa > 0, torch.zeros_like(counts))
    return (1 - share) * raw + share * parent


def hierarchical_gaps(statistics: Tensor,
                      groups: Tensor,
                      kappa: Union[float, str] = 20.) -> Tensor:
    """Return gaps of bins that are shrunk to the group and to all classes.

    Args:
        statistics (Tensor): (C, B, 3); with one bin, B = 1, the result is
            the shrunk scalar gap.
        groups (Tensor): Group of each class (C,), int64. A single group is
            no level of its own.
        kappa (float or str): How many predictions the level above is worth;
            0 for raw gaps. 'auto' takes for classes what empirical Bayes
            finds in their group, see :func:`empirical_bayes`, and 20 for
            the groups. Defaults to 20.

    Returns:
        Tensor: (C, B), float64; 0 where nothing was measured.
    """
    level = 20. if kappa == 'auto' else kappa

    def shrink(part: Tensor, parent: Tensor,
               kappa: Union[float, Tensor]) -> Tensor:
        count, confidence, outcome = part.unbind(-1)
        return shrink_gaps(outcome - confidence, count, parent, kappa)

    gaps = shrink(
        statistics.sum(0, keepdim=True),
        statistics.new_zeros((1, statistics.shape[1])), level)
    parent = gaps.expand(len(statistics), -1)
    num_groups = int(groups.max()) + 1
    if num_groups > 1:
        gaps = shrink(
            sum_groups(statistics, groups, num_groups),
            gaps.expand(num_groups, -1), level)
        parent = gaps[groups]
    if kappa == 'auto':
        level = _kappa_of_groups(statistics, groups, num_groups)[groups, None]
    return shrink(statistics, parent, level)


def _kappa_of_groups(statistics: Tensor, groups: Tensor,
                     num_groups: int) -> Tensor:
    """Return the prior strength in each group, by empirical Bayes."""
    counts = class_counts(statistics)
    outcomes = statistics[..., 2].sum(1)
    gaps = (outcomes - statistics[..., 1].sum(1)) / counts
    kappa = statistics.new_full((num_groups, ), 20.)
    for group in range(num_groups):
        members = (groups == group) & (counts > 0)
        if members.sum() < 2:
            continue
        rate = outcomes[members].sum() / counts[members].sum()
        _, spread, _ = empirical_bayes(gaps[members], counts[members],
                                       rate.expand(int(members.sum())))
        variance = rate * (1 - rate)
        # Outcomes that are all alike say nothing about the noise.
        if variance > 0:
            kappa[group] = variance / spread
    return kappa


def empirical_bayes(gaps: Tensor, counts: Tensor,
                    rates: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Estimate how much the gaps of classes really differ.

    The variance of a class's gap by luck is v = r (1 - r) / n; what the
    gaps vary beyond the mean of these is the variance between classes.

    Args:
        gaps (Tensor): Gaps of at least two classes (M,).
        counts (Tensor): Numbers of predictions (M,), above 0.
        rates (Tensor): Mean outcomes (M,) to compute the variances with,
            such as that of the group; above 0 and below 1.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Their mean, weighted by 1 / v; the
        variance between classes, 0 if luck explains all; and the gaps (M,)
        drawn towards the mean.
    """
    variance = rates * (1 - rates) / counts
    mean = (gaps / variance).sum() / (1 / variance).sum()
    spread = (gaps.var() - variance.mean()).clamp(min=0.)
    weight = spread / (spread + variance)
    return mean, spread, weight * gaps + (1 - weight) * mean


def hierarchical_platt(statistics: Tensor,
                       groups: Tensor,
                       widths: Sequence[Sequence[float]] = ((1., 1.),
                                                            (0.5, 0.5),
                                                            (0.2, 0.4)),
                       min_slope: float = 0.05,
                       slope_only: bool = False) -> Tensor:
    """Fit logistic maps; each level is the centre of the next one's prior.

    Args:
        statistics (Tensor): (C, B, 3).
        groups (Tensor): Group of each class (C,), int64. A single group is
            no level of its own.
        widths (Sequence[Sequence[float]]): Standard deviations of slope and
            offset around their centre: of all classes around (1, 0), of
            groups, of classes. Defaults to ((1, 1), (.5, .5), (.2, .4)).
        min_slope (float): Smallest slope. Defaults to 0.05.
        slope_only (bool): Keep the offset at 0: temperature scaling with
            temperature 1 / slope. Defaults to False.

    Returns:
        Tensor: Slope and offset (C, 2), float64; (1, 0) where nothing was
        measured.
    """
    centre = fit_platt(
        statistics.sum(0, keepdim=True), statistics.new_tensor([[1., 0.]]),
        widths[0], min_slope, slope_only)
    num_groups = int(groups.max()) + 1
    if num_groups > 1:
        centre = fit_platt(
            sum_groups(statistics, groups, num_groups),
            centre.expand(num_groups, -1), widths[1], min_slope,
            slope_only)[groups]
    return fit_platt(statistics, centre.expand(len(statistics), -1),
                     widths[2], min_slope, slope_only)


def rising(values: Tensor, weights: Tensor) -> Tensor:
    """Return the closest sequences that never fall (isotonic regression).

    The least squares solution is max over i <= b of min over j >= b of the
    mean from i to j, the same that pooling adjacent violators finds.

    Args:
        values (Tensor): Sequences (C, B), float64.
        weights (Tensor): Their weights (C, B), above 0.

    Returns:
        Tensor: (C, B); rows that never fall come back bit-identical.
    """
    size = values.shape[1]
    forward = torch.ones((size, size),
                         dtype=torch.bool,
                         device=values.device).triu()
    # Sums from i to j; differences of sums from 0 would lose small weights.
    weight = (weights[:, None] * forward).cumsum(2)
    means = ((weights * values)[:, None] * forward).cumsum(2) / weight
    means = means.masked_fill(~forward, torch.inf)
    least = means.flip(2).cummin(2).values.flip(2)
    pooled = least.masked_fill(~forward, -torch.inf).amax(1)
    falls = (values.diff(dim=1) < 0).any(1, keepdim=True)
    return pooled.where(falls, values)
