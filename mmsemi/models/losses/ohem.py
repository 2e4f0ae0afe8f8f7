# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Cross entropy of the hardest pixels (online hard example mining)."""
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL
from .dense_losses import full_precision


def hard_pixels(prob: Tensor, valid: Tensor, thresh: float,
                min_kept: int) -> Tensor:
    """Mark the pixels whose true class is least likely.

    Kept is what has at most the threshold's probability; if these are fewer
    than ``min_kept``, the threshold rises to the ``min_kept``-th smallest
    probability, and pixels that tie with it are kept too.

    Args:
        prob (Tensor): Probability of the true class, of any shape.
        valid (Tensor): Bool, False where no class is known.
        thresh (float): In [0, 1].
        min_kept (int): Number of pixels of the whole batch, from 0.

    Returns:
        Tensor: Bool, of the same shape.
    """
    if min_kept > prob.numel():
        return valid
    if min_kept > 0:
        # Pixels left out rank last, so that too few valid ones all stay and
        # no number has to travel to the host.
        ranked = prob.where(valid, torch.inf).flatten()
        thresh = ranked.kthvalue(min_kept).values.clamp(min=thresh)
    return valid & (prob <= thresh)


@MODELS.register_module()
class OhemCrossEntropyLoss(nn.Module):
    """Cross entropy, averaged over the hardest pixels of the batch.

    The loss of labelled Cityscapes images in the released code of CPS, U2PL,
    UniMatch and CorrMatch, as a ``loss_decode`` of mmseg's heads. After A.
    Shrivastava et al., Training region-based object detectors with online
    hard example mining, CVPR 2016.

    It differs from mmseg's ``OHEMPixelSampler`` in four ways: a pixel at the
    threshold is kept; ``min_kept`` counts pixels of the batch, not of each
    image in it; the threshold is the ``min_kept``-th smallest probability,
    not the one after it; the mean is taken over the kept pixels, not over all
    of them. Labelled images on every device keep their own hardest pixels.

    Args:
        thresh (float): Pixels whose true class has at most this probability
            are kept, in [0, 1]. Defaults to 0.7.
        min_kept (int): Keep at least so many pixels of the batch on one
            device. Released: 100000 (U2PL, CorrMatch), 200000 (UniMatch),
            50000 per image (CPS). Defaults to 100000.
        class_weight (Sequence[float], optional): Factors on the losses of
            the classes; the mean stays one over pixels. Defaults to None: 1.
        loss_weight (float): Factor. Defaults to 1.
        loss_name (str): Name in the log; must start with 'loss_' to be
            learned from. Defaults to 'loss_ohem'.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 thresh: float = 0.7,
                 min_kept: int = 100000,
                 class_weight: Optional[Sequence[float]] = None,
                 loss_weight: float = 1.,
                 loss_name: str = 'loss_ohem') -> None:
        super().__init__()
        if not 0 <= thresh <= 1:
            raise ValueError(f'OhemCrossEntropyLoss.thresh={thresh!r}; '
                             'allowed are numbers from 0 to 1.')
        if not isinstance(min_kept, int) or min_kept < 0:
            raise ValueError(f'OhemCrossEntropyLoss.min_kept={min_kept!r}; '
                             'allowed are whole numbers from 0.')
        self.thresh = float(thresh)
        self.min_kept = min_kept
        self.loss_weight = float(loss_weight)
        self.loss_name = loss_name
        self.register_buffer(
            'class_weight',
            None if class_weight is None else torch.tensor(class_weight),
            persistent=False)

    def forward(self,
                cls_score: Tensor,
                label: Tensor,
                weight: Optional[Tensor] = None,
                avg_factor: Optional[float] = None,
                reduction_override: Optional[str] = None,
                ignore_index: int = IGNORE_LABEL) -> Tensor:
        """Compute the loss.

        Args:
            cls_score (Tensor): Logits (N, C, H, W), C > 1.
            label (Tensor): (N, H, W) int64.
            weight (Tensor, optional): (N, H, W), factors on the pixels; they
                do not count in the mean. Defaults to None.
            avg_factor (float, optional): What the sum is divided by. Defaults
                to None: the number of kept pixels.
            reduction_override (str, optional): 'none' gives each pixel's
                loss, 'sum' their sum. Defaults to None: the mean.
            ignore_index (int): Label of pixels without a class. Defaults to
                255.

        Returns:
            Tensor: The loss, 0 if no pixel has a class.

        Raises:
            ValueError: If there is a single channel.
        """
        if cls_score.shape[1] == 1:
            raise ValueError(
                'OhemCrossEntropyLoss needs a softmax over classes; set '
                'decode_head.out_channels=2 instead of 1.')
        valid = label != ignore_index
        loss = F.cross_entropy(
            full_precision(cls_score),
            label,
            reduction='none',
            ignore_index=ignore_index)
        kept = hard_pixels((-loss.detach()).exp(), valid, self.thresh,
                           self.min_kept)
        # A product would let infinite losses of left out pixels through.
        loss = loss.where(kept, 0.)
        if self.class_weight is not None:
            index = label.where(valid, 0)
            loss = loss * self.class_weight.to(loss)[index]
        if weight is not None:
            loss = loss * weight
        loss = self.loss_weight * loss
        if reduction_override == 'none':
            return loss
        total = loss.sum()
        if reduction_override == 'sum':
            return total
        if avg_factor is not None:
            return total / avg_factor
        return total / kept.sum().clamp(min=1)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f'thresh={self.thresh}, min_kept={self.min_kept}'
