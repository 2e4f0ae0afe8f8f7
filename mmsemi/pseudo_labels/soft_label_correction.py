# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Rows of probabilities with another confidence."""
from typing import Optional, Union

import torch
from torch import Tensor
from torch.nn import functional as F

from .calibration_measures import class_counts
from .platt import logit

# A row whose other probabilities sum to less does not say how they compare.
LEAST_REST = 1e-6


def replace_confidence(probs: Tensor,
                       labels: Tensor,
                       confidence: Tensor,
                       num_classes: int,
                       similarity: Optional[Tensor] = None,
                       rest: str = 'keep') -> Tensor:
    """Give the predicted class of each row a new probability.

    With t for the new and s for the old one, the others are scaled by
    (1 - t) / (1 - s). This is the same as adding logit(t) - logit(s) to the
    logit of the predicted class: rows sum to 1 and the others keep their
    ratios.

    Args:
        probs (Tensor): Rows (..., K) that sum to 1, with K = C or,
            background last, C + 1.
        labels (Tensor): Predicted classes (...), int64, 0 to C - 1.
        confidence (Tensor): New probabilities (...), float64.
        num_classes (int): Number of classes C.
        similarity (Tensor, optional): Where the rest of a row of each class
            goes, (C, C), rows that sum to 1 with 0 on the diagonal. Defaults
            to None: evenly to all other classes; if there is none, to the
            background.
        rest (str): 'keep' scales the others, except in rows where they sum
            to less than 1e-6, which are spread by ``similarity``;
            'similarity' spreads all rows. Defaults to 'keep'.

    Returns:
        Tensor: Rows (..., K), of the type of ``probs``. Where the new
        probability is the old one, the row is bit-identical; so are rows of
        a single column.
    """
    if probs.shape[-1] == 1:
        return probs
    index = labels[..., None]
    old, new = probs.gather(-1, index), confidence[..., None]
    others = probs.scatter(-1, index, 0.)
    total = others.sum(-1, keepdim=True, dtype=torch.float64)
    left = 1 - new
    spread = _spread(labels, probs, num_classes, similarity)
    spread = (spread * left.to(probs.dtype)).expand_as(probs)
    if rest == 'keep':
        factor = (left / total.clamp(min=LEAST_REST)).to(probs.dtype)
        spread = (others * factor).where(total >= LEAST_REST, spread)
    corrected = spread.scatter(-1, index, new.to(probs.dtype))
    return corrected.where(new != old.double(), probs)


def _spread(labels: Tensor, probs: Tensor, num_classes: int,
            similarity: Optional[Tensor]) -> Tensor:
    """Return how a rest is spread over the columns."""
    columns = probs.shape[-1]
    if num_classes == 1:
        return probs.new_tensor([0., 1.])
    if similarity is None:
        even = probs.new_full((num_classes, ), 1 / (num_classes - 1))
        return F.pad(even, (0, columns - num_classes))
    return F.pad(
        similarity.to(probs)[labels], (0, columns - num_classes))


def drop_background(probs: Tensor) -> Tensor:
    """Put the last column of rows (..., C + 1) to 0 and scale the others up.

    Args:
        probs (Tensor): Rows that sum to 1.

    Returns:
        Tensor: Rows that sum to 1, or to 0 where there is nothing but
        background.
    """
    foreground = probs.clone()
    foreground[..., -1] = 0.
    total = foreground.sum(-1, keepdim=True)
    return foreground / total.clamp(min=torch.finfo(probs.dtype).tiny)


def rescale_logits(probs: Tensor,
                   slope: Union[float, Tensor] = 1.,
                   offset: Union[float, Tensor] = 0.) -> Tensor:
    """Return softmax(slope * log(p) + offset).

    Args:
        probs (Tensor): Rows (..., K) that sum to 1.
        slope (float or Tensor): One over the temperature. Defaults to 1.
        offset (float or Tensor): What is added, such as one value for each
            column. Defaults to 0.

    Returns:
        Tensor: Rows (..., K).
    """
    return (slope * probs.log() + offset).softmax(-1)


def correct_marginals(probs: Tensor, statistics: Tensor) -> Tensor:
    """Correct all probabilities of a row at once, each by its own class.

    Every column's logit is moved by logit(mean outcome) - logit(mean
    confidence). Unlike :func:`replace_confidence` this changes the ratios of
    the classes, and no column gets exactly what it is moved to.

    Args:
        probs (Tensor): Rows (..., K) that sum to 1.
        statistics (Tensor): From :func:`marginal_statistics`, (K, B, 3).

    Returns:
        Tensor: Rows (..., K), of the type of ``probs``.
    """
    count = class_counts(statistics)
    _, confidence, outcome = statistics.sum(1).unbind(-1)
    offset = logit(outcome / count) - logit(confidence / count)
    offset = offset.where(count > 0, torch.zeros_like(offset))
    return rescale_logits(probs, offset=offset.to(probs))
