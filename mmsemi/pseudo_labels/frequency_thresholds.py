# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Sequence, Union

import torch
from torch import Tensor


def frequency_thresholds(scores: Tensor,
                         labels: Tensor,
                         num_images: int,
                         true_counts: Union[Sequence[int], Tensor],
                         num_true_images: int,
                         low: float = 0.1,
                         steps: int = 100) -> Tensor:
    """Find class thresholds that make classes as frequent as they should be.

    Each class gets the lowest threshold on a grid at which there are no more
    pseudo-instances per unlabelled image than there are true instances per
    labelled one. Kept is what scores strictly more.

    Z. Wang et al., Noisy Boundaries, CVPR 2022, grid 0.10, 0.11, ... 1.

    Args:
        scores (Tensor): Confidences (N,) of all predictions on some
            unlabelled images.
        labels (Tensor): Their classes (N,), 0 to C - 1.
        num_images (int): Number of these images.
        true_counts (Sequence[int] or Tensor): Instances of each class in
            some labelled images, (C,).
        num_true_images (int): Number of these images.
        low (float): First threshold of the grid. Defaults to 0.1.
        steps (int): Grid steps from 0 to 1. Defaults to 100.

    Returns:
        Tensor: Thresholds (C,), float32, for :class:`FilterByScore`; 1 for
        classes without a true instance.

    Raises:
        ValueError: If a number of images is below 1 or ``low`` is no
            threshold.
    """
    if num_images < 1 or num_true_images < 1:
        raise ValueError(
            f'frequency_thresholds got num_images={num_images}, '
            f'num_true_images={num_true_images}; both start at 1.')
    if not 0 <= low <= 1:
        raise ValueError(f'frequency_thresholds got low={low!r}; allowed are '
                         'numbers from 0 to 1.')
    wanted = torch.as_tensor(
        true_counts, dtype=torch.float64,
        device=scores.device) * num_images / num_true_images
    grid = torch.arange(
        round(low * steps), steps + 1, device=scores.device).float() / steps
    # By how many thresholds each prediction is kept.
    passed = torch.bucketize(scores.float(), grid)
    size = len(grid) + 1
    counts = (labels * size + passed).bincount(minlength=len(wanted) * size)
    # Columns become the numbers kept by each threshold.
    kept = counts.view(-1, size).flip(1).cumsum(1).flip(1)[:, 1:]
    few_enough = kept <= wanted[:, None]
    # Nothing scores more than 1, so the last threshold always does.
    first = few_enough.int().argmax(1)
    return grid[first].where(wanted > 0, torch.ones_like(grid[first]))
