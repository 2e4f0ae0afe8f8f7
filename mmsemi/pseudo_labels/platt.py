# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Logistic maps of confidence with Gaussian priors, all classes at once."""
from typing import Callable, Sequence, Tuple

import torch
from torch import Tensor

# Confidences closer to 0 or 1 than this are taken for this close.
SMALLEST_CONFIDENCE = 1e-6
MOST_STEPS = 60
MOST_HALVINGS = 30


def logit(confidence: Tensor) -> Tensor:
    """Return the logit, finite also at 0 and 1."""
    return torch.logit(confidence, eps=SMALLEST_CONFIDENCE)


def fit_platt(statistics: Tensor,
              centre: Tensor,
              width: Sequence[float],
              min_slope: float = 0.05,
              slope_only: bool = False) -> Tensor:
    """Fit sigmoid(a * logit(s) + b) to binned outcomes.

    Per row the maximum a posteriori of a binomial likelihood, each bin at
    its mean confidence, with independent Gaussian priors on a and b. The
    problem is convex; damped Newton steps in 2 x 2 systems solve all rows
    together. Rows without data end exactly at their centre.

    J. Platt, Probabilistic outputs for support vector machines, 1999, with
    a prior.

    Args:
        statistics (Tensor): Count, sum of confidences and sum of outcomes
            (M, B, 3), float64. Outcomes may be fractions.
        centre (Tensor): Prior means of a and b (M, 2), float64.
        width (Sequence[float]): Prior standard deviations of a and b, above
            0; infinite for none.
        min_slope (float): Smallest a, so that the map rises. Where the
            optimum is below, b is the best one for this a. Defaults to
            0.05; ``-inf`` for no limit.
        slope_only (bool): Keep b at its centre. Defaults to False.

    Returns:
        Tensor: a and b (M, 2), float64.
    """
    count, confidence, outcome = statistics.unbind(-1)
    # An empty bin has no weight, wherever it is.
    x = logit((confidence / count).nan_to_num(0.5).clamp(0., 1.))
    precision = torch.tensor(
        [w**-2. for w in width], dtype=torch.float64, device=x.device)
    free = torch.ones_like(centre)
    if slope_only:
        free[:, 1] = 0.
    data = count, x, outcome
    solution = _newton(data, centre, precision, centre.clone(), free)
    low = solution[:, 0] < min_slope
    if low.any():
        start, free = solution[low], free[low]
        start[:, 0], free[:, 0] = min_slope, 0.
        solution[low] = _newton(
            tuple(part[low] for part in data), centre[low], precision, start,
            free)
    return solution


def _newton(data: Tuple[Tensor, Tensor, Tensor], centre: Tensor,
            precision: Tensor, solution: Tensor, free: Tensor) -> Tensor:
    """Minimise over what is free (M, 2) of the solution."""
    count, x, outcome = data
    zero = torch.zeros_like(x)

    def objective(ab: Tensor) -> Tensor:
        z = ab[:, :1] * x + ab[:, 1:]
        loss = (count * torch.logaddexp(z, zero) - outcome * z).sum(1)
        return loss + ((ab - centre)**2 * precision).sum(1) / 2

    value = objective(solution)
    for _ in range(MOST_STEPS):
        p = torch.sigmoid(solution[:, :1] * x + solution[:, 1:])
        residual = count * p - outcome
        curvature = count * p * (1 - p)
        gradient = torch.stack([(residual * x).sum(1), residual.sum(1)], 1)
        gradient = (gradient + (solution - centre) * precision) * free
        # A trace of damping, for rows that neither data nor prior pins.
        diagonal = torch.stack(
            [(curvature * x * x).sum(1), curvature.sum(1)], 1)
        diagonal = diagonal + precision + 1e-12
        diagonal = diagonal.where(free > 0, torch.ones_like(diagonal))
        cross = (curvature * x).sum(1) * free.prod(1)
        determinant = diagonal.prod(1) - cross**2
        step = (diagonal.flip(1) * gradient - cross[:, None] *
                gradient.flip(1)) / determinant.clamp(min=1e-300)[:, None]
        before = value
        solution, value = _descend(objective, solution, value, step)
        gain = before - value
        if (gain <= 1e-13 * before.abs()).all():
            break
    return solution


def _descend(objective: Callable[[Tensor], Tensor], solution: Tensor,
             value: Tensor, step: Tensor) -> Tuple[Tensor, Tensor]:
    """Halve the steps of the rows that a full one makes worse."""
    share = torch.ones_like(value)
    for _ in range(MOST_HALVINGS):
        proposed = solution - share[:, None] * step
        reached = objective(proposed)
        worse = reached > value + 1e-12 * value.abs()
        if not worse.any():
            break
        share = share.where(~worse, share / 2)
    better = ~worse & reached.isfinite()
    solution = proposed.where(better[:, None], solution)
    return solution, reached.where(better, value)


def apply_platt(confidence: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Map confidences; slope 1 and offset 0 leave them bit-identical.

    Args:
        confidence (Tensor): In [0, 1], float64.
        slope (Tensor): a of each.
        offset (Tensor): b of each.

    Returns:
        Tensor: In (0, 1).
    """
    mapped = torch.sigmoid(slope * logit(confidence) + offset)
    return confidence.where((slope == 1) & (offset == 0), mapped)
