# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Whether refinement makes pseudo-masks better, where the truth is known."""
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL


@dataclass
class RefinementCounts:
    """How pseudo-masks fared, as in figure 6 of SemiRES (arXiv 2406.01451).

    Args:
        better (int): Matched, and of higher IoU with the truth than before.
        worse (int): Matched, and of lower IoU.
        same (int): Matched, and of the same IoU; the paper does not say
            where it counts these.
        unmatched (int): Without a match.
    """

    better: int = 0
    worse: int = 0
    same: int = 0
    unmatched: int = 0

    @property
    def total(self) -> int:
        """int: All pseudo-masks."""
        return self.better + self.worse + self.same + self.unmatched

    @property
    def precision(self) -> float:
        """float: Better share of better and worse; NaN without any."""
        changed = self.better + self.worse
        return self.better / changed if changed else float('nan')

    def __add__(self, other: 'RefinementCounts') -> 'RefinementCounts':
        return RefinementCounts(
            **{
                name: value + getattr(other, name)
                for name, value in vars(self).items()
            })


@torch.no_grad()
def count_refinements(pseudo: Tensor,
                      refined: Tensor,
                      truth: Tensor,
                      matched: Optional[Tensor] = None) -> RefinementCounts:
    """Count better, worse and unmatched pseudo-masks.

    Args:
        pseudo (Tensor): (H, W) or (K, H, W), bool or 0 and 1: before.
        refined (Tensor): As ``pseudo``: after.
        truth (Tensor): As ``pseudo``; pixels of 255 do not count.
        matched (Tensor, optional): (K,) bool. Defaults to None: unmatched is
            what equals its pseudo-mask.

    Returns:
        RefinementCounts: Of the K masks.

    Raises:
        ValueError: If the shapes differ.
    """
    if not pseudo.shape == refined.shape == truth.shape:
        raise ValueError(
            'count_refinements needs masks of one shape, got '
            f'{tuple(pseudo.shape)}, {tuple(refined.shape)} and '
            f'{tuple(truth.shape)}.')
    if pseudo.dim() == 2:
        pseudo, refined, truth = pseudo[None], refined[None], truth[None]
    before, after = pseudo != 0, refined != 0
    if matched is None:
        matched = (before != after).flatten(1).any(1)
    matched = matched.reshape(-1)
    counted = truth != IGNORE_LABEL
    truth = (truth != 0) & counted
    gain = _iou(after & counted, truth) - _iou(before & counted, truth)
    return RefinementCounts(
        better=int((matched & (gain > 0)).sum()),
        worse=int((matched & (gain < 0)).sum()),
        same=int((matched & (gain == 0)).sum()),
        unmatched=int((~matched).sum()))


def _iou(masks: Tensor, truth: Tensor) -> Tensor:
    """Return the IoU of pairs, (K,) float64; 0 where both are empty."""
    shared = (masks & truth).flatten(1).sum(1).double()
    return shared / (masks | truth).flatten(1).sum(1).clamp(min=1)
