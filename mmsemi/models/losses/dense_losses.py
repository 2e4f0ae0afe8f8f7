# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Losses of every pixel, and what their sum is divided by."""
from enum import Enum
from typing import Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL


class LossNormalizer(str, Enum):
    """What the sum of the pixels' losses is divided by.

    The four are in use in published code and differ by large factors when
    few pixels are learned from.

    - ``KEPT``: the number of pixels learned from (torch's mean over pixels
      that are not ignored; CPS, ST++, ClassMix);
    - ``VALID``: the number of pixels that are no padding, so that the loss
      shrinks when few are learned from (FixMatch, UniMatch, CorrMatch);
    - ``KEPT_RESCALED``: as ``KEPT``, times all pixels per kept one (U2PL);
    - ``ALL``: all pixels, padding included (mmseg's ``CrossEntropyLoss`` with
      ``avg_non_ignore=False``).
    """

    KEPT = 'kept'
    VALID = 'valid'
    KEPT_RESCALED = 'kept_rescaled'
    ALL = 'all'

    @classmethod
    def from_config(cls, value: Union[str, 'LossNormalizer'],
                    field: str) -> 'LossNormalizer':
        """Return the member of a name, or raise ValueError.

        Args:
            value (str or LossNormalizer): The name.
            field (str): Config field, for the message.
        """
        try:
            return cls(value)
        except ValueError:
            raise ValueError(f'{field}={value!r}; allowed are '
                             f'{[member.value for member in cls]}.') from None


def full_precision(values: Tensor) -> Tensor:
    """Return values in single precision, unless they have more."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def normalize_loss(pixel_loss: Tensor, weight: Tensor, valid: Tensor,
                   normalizer: LossNormalizer) -> Tensor:
    """Sum weighted losses of pixels and divide.

    Args:
        pixel_loss (Tensor): (N, H, W).
        weight (Tensor): (N, H, W), 0 where nothing is learned. A pixel counts
            as kept where its weight is above 0.
        valid (Tensor): (N, H, W) bool, False on padding, which is never
            learned from.
        normalizer (LossNormalizer): What to divide by.

    Returns:
        Tensor: The loss, 0 if nothing is kept.
    """
    weight = weight.to(pixel_loss) * valid
    # A product would let infinite losses of left out pixels through.
    total = (pixel_loss.where(weight > 0, 0.) * weight).sum()
    kept = (weight > 0).sum()
    if normalizer is LossNormalizer.VALID:
        return total / valid.sum().clamp(min=1)
    if normalizer is LossNormalizer.ALL:
        return total / valid.numel()
    mean = total / kept.clamp(min=1)
    if normalizer is LossNormalizer.KEPT_RESCALED:
        return mean * (valid.numel() / kept.clamp(min=1))
    return mean


def dense_cross_entropy(
        logits: Tensor,
        label: Tensor,
        weight: Optional[Tensor] = None,
        valid: Optional[Tensor] = None,
        normalizer: LossNormalizer = LossNormalizer.KEPT,
        ignore_index: int = IGNORE_LABEL) -> Tensor:
    """Compute the cross entropy of labelled pixels.

    Args:
        logits (Tensor): (N, C, H, W).
        label (Tensor): (N, H, W) int64.
        weight (Tensor, optional): (N, H, W). Defaults to None: 1.
        valid (Tensor, optional): (N, H, W) bool, False on padding. Defaults
            to None: no padding.
        normalizer (LossNormalizer): Defaults to ``KEPT``.
        ignore_index (int): Label of pixels without a class. Defaults to 255.

    Returns:
        Tensor: The loss.
    """
    pixel_loss = F.cross_entropy(
        full_precision(logits),
        label,
        ignore_index=ignore_index,
        reduction='none')
    known = label != ignore_index
    weight = known.to(pixel_loss) if weight is None else weight * known
    valid = torch.ones_like(known) if valid is None else valid
    return normalize_loss(pixel_loss, weight, valid, normalizer)


def soft_cross_entropy(logits: Tensor,
                       prob: Tensor,
                       divergence: bool = False) -> Tensor:
    """Compute every pixel's cross entropy with soft targets.

    Args:
        logits (Tensor): (N, C, H, W).
        prob (Tensor): Targets (N, C, H, W) that sum to 1 over C.
        divergence (bool): Whether to subtract the targets' entropy, which
            gives the Kullback-Leibler divergence. Defaults to False.

    Returns:
        Tensor: (N, H, W).
    """
    log_prob = full_precision(logits).log_softmax(1)
    loss = -(prob * log_prob).sum(1)
    if divergence:
        loss = loss + torch.xlogy(prob, prob).sum(1)
    return loss
