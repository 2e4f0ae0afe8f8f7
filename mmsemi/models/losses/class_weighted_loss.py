# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Cross entropy with class weights, and what its sum is divided by."""
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL
from .dense_losses import full_precision

REDUCTIONS = ('weights', 'pixels')


@MODELS.register_module()
class ClassWeightedCrossEntropyLoss(nn.Module):
    """Cross entropy with class weights, as a ``loss_decode`` of mmseg.

    Pixels without a class are neither summed nor counted. mmseg's own loss
    with class weights divides by weights alone, and depending on its version
    fails where pixels are ignored.

    Args:
        class_weight (Sequence[float]): Weight of each class, above 0.
        reduction (str): What the sum of weight x loss is divided by:
            'weights', the weights' sum, as torch does (LAVT; equal logits
            give ln 2 whatever the mask), or 'pixels', their number (the
            second stage of SemiRES's released code). Defaults to 'weights'.
        loss_weight (float): Factor. Defaults to 1.
        loss_name (str): Name in the log; must start with 'loss_' to be
            learned from. Defaults to 'loss_ce'.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 class_weight: Sequence[float],
                 reduction: str = 'weights',
                 loss_weight: float = 1.,
                 loss_name: str = 'loss_ce') -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(
                'ClassWeightedCrossEntropyLoss.reduction (decode_head.'
                f"loss_reduction)={reduction!r}; allowed are 'weights' and "
                "'pixels'.")
        if not len(class_weight) or not all(w > 0 for w in class_weight):
            raise ValueError(
                'ClassWeightedCrossEntropyLoss.class_weight='
                f'{class_weight!r}; one number above 0 per class is needed.')
        self.reduction = reduction
        self.loss_weight = float(loss_weight)
        self.loss_name = loss_name
        self.register_buffer(
            'class_weight',
            torch.tensor([float(w) for w in class_weight]),
            persistent=False)

    def forward(self,
                cls_score: Tensor,
                label: Tensor,
                weight: Optional[Tensor] = None,
                ignore_index: int = IGNORE_LABEL) -> Tensor:
        """Compute the loss.

        Args:
            cls_score (Tensor): Logits (N, C, H, W).
            label (Tensor): (N, H, W) int64.
            weight (Tensor, optional): (N, H, W), factors on the pixels; they
                do not change what is divided by. Defaults to None.
            ignore_index (int): Label of pixels without a class. Defaults to
                255.

        Returns:
            Tensor: The loss, 0 if no pixel has a class.

        Raises:
            ValueError: If the number of channels is not that of the weights.
        """
        if cls_score.shape[1] != len(self.class_weight):
            raise ValueError(
                'ClassWeightedCrossEntropyLoss.class_weight has '
                f'{len(self.class_weight)} numbers, but the logits have '
                f'{cls_score.shape[1]} channels.')
        logits = full_precision(cls_score)
        loss = F.cross_entropy(
            logits,
            label,
            weight=self.class_weight.to(logits),
            ignore_index=ignore_index,
            reduction='none')
        known = label != ignore_index
        if self.reduction == 'weights':
            class_weight = self.class_weight.to(logits)
            count = class_weight[label.where(known, 0)].where(known, 0.).sum()
        else:
            count = known.sum().to(loss)
        if weight is not None:
            loss = loss * weight
        tiny = torch.finfo(loss.dtype).tiny
        return self.loss_weight * loss.sum() / count.clamp(min=tiny)

    def extra_repr(self) -> str:
        """Return the settings."""
        return (f'class_weight={self.class_weight.tolist()}, '
                f'reduction={self.reduction!r}')
