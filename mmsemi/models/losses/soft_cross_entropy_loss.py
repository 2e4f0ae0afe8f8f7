# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Softmax cross entropy that also takes a probability of every class."""
from typing import Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsemi.registry import MODELS
from .dense_losses import full_precision

REDUCTIONS = ('none', 'mean', 'sum')


@MODELS.register_module()
class SoftCrossEntropyLoss(nn.Module):
    r"""Cross entropy with hard labels or soft targets.

    With a target q over the classes k, class weights w and weights v of the
    samples i,

    .. math:: L = \frac{\sum_i v_i \sum_k -w_k q_{ik} \log p_{ik}}{A},

    where A is ``avg_factor``, by default :math:`\sum_i v_i \sum_k w_k q_{ik}`
    (``F.cross_entropy`` divides probability targets by the number of samples
    instead). Without a target it is mmdet's ``CrossEntropyLoss`` with
    ``use_sigmoid=False``, bit by bit, and its place can be taken without
    another change. With a one-hot target and the same ``avg_factor`` both
    are equal.

    It also serves as ``loss_decode`` of mmseg's heads. The mean over hard
    labels then is one over pixels, as in mmdet, where mmseg's own loss
    divides by the class weights of the pixels if there are any.

    With ``smoothing`` hard labels become soft targets inside, so that a
    teacher learns smoothed labels without another head. A target that is
    given is not smoothed.

    Args:
        use_sigmoid (bool): Only False, for configs that say so.
        use_mask (bool): Only False, for configs that say so.
        reduction (str): 'mean', 'sum' or 'none'. Defaults to 'mean'.
        class_weight (Sequence[float], optional): Weights of the classes, the
            background included where there is one. Defaults to None: 1.
        ignore_index (int, optional): Label of samples that are left out.
            Defaults to None: -100.
        loss_weight (float): Factor. Defaults to 1.
        avg_non_ignore (bool): Whether the mean over hard labels, without
            ``avg_factor``, leaves ignored samples out; with soft targets it
            always does. Defaults to False, as in mmdet and mmseg.
        smoothing (dict or nn.Module, optional): A
            :class:`SimilarityLabelSmoothing`. Defaults to None.
        loss_name (str): Name in mmseg's log; must start with 'loss_' to be
            learned from. Defaults to 'loss_ce'.

    Raises:
        ValueError: If an argument is out of range.
    """

    # Heads of mmdet ask their loss for these.
    use_sigmoid = False
    use_mask = False
    custom_cls_channels = False
    custom_activation = False
    custom_accuracy = False

    def __init__(self,
                 use_sigmoid: bool = False,
                 use_mask: bool = False,
                 reduction: str = 'mean',
                 class_weight: Optional[Sequence[float]] = None,
                 ignore_index: Optional[int] = None,
                 loss_weight: float = 1.,
                 avg_non_ignore: bool = False,
                 smoothing: Optional[Union[dict, nn.Module]] = None,
                 loss_name: str = 'loss_ce') -> None:
        super().__init__()
        if use_sigmoid or use_mask:
            raise ValueError(
                f'SoftCrossEntropyLoss.use_sigmoid={use_sigmoid!r}, use_mask='
                f'{use_mask!r}; it is a softmax over classes, and both must '
                'be False.')
        _check_reduction(reduction, 'SoftCrossEntropyLoss.reduction')
        self.reduction = reduction
        self.class_weight = None if class_weight is None else list(
            class_weight)
        self.ignore_index = ignore_index
        self.loss_weight = float(loss_weight)
        self.avg_non_ignore = avg_non_ignore
        if isinstance(smoothing, dict):
            smoothing = MODELS.build(smoothing)
        self.smoothing = smoothing
        self.loss_name = loss_name

    def forward(self,
                cls_score: Tensor,
                label: Optional[Tensor],
                weight: Optional[Tensor] = None,
                avg_factor: Optional[Union[float, Tensor]] = None,
                reduction_override: Optional[str] = None,
                ignore_index: Optional[int] = None,
                soft_target: Optional[Tensor] = None) -> Tensor:
        """Compute the loss.

        Args:
            cls_score (Tensor): Logits (N, K) or (N, K, H, W), K classes.
            label (Tensor, optional): (N,) or (N, H, W) int64. With a target
                it only says which samples are ignored, and may be None.
            weight (Tensor, optional): Weights of the samples, of the label's
                shape. Defaults to None: 1.
            avg_factor (float or Tensor, optional): What the sum is divided
                by. Defaults to None: see the class; with hard labels the
                number of samples.
            reduction_override (str, optional): Instead of ``reduction``.
            ignore_index (int, optional): Instead of ``ignore_index``.
            soft_target (Tensor, optional): Probabilities of the logits'
                shape, sums of 1 over K. Defaults to None.

        Returns:
            Tensor: The loss; of the label's shape with 'none'.

        Raises:
            ValueError: If the shapes differ, or ``avg_factor`` is given for
                a sum.
        """
        reduction = reduction_override or self.reduction
        _check_reduction(reduction, 'reduction_override')
        if avg_factor is not None and reduction == 'sum':
            raise ValueError("avg_factor divides a mean; with reduction='sum'"
                             ' it must be None.')
        if ignore_index is None:
            ignore_index = self.ignore_index
        if ignore_index is None:
            ignore_index = -100
        if soft_target is None and self.smoothing is not None:
            soft_target = self.expand(label, cls_score.shape[1], ignore_index)
        if soft_target is not None:
            if soft_target.shape != cls_score.shape:
                raise ValueError(
                    f'soft_target has shape {tuple(soft_target.shape)}, the '
                    f'logits have {tuple(cls_score.shape)}; they must be '
                    'equal.')
            known = None if label is None else label != ignore_index
            loss = self._soft_loss(cls_score, soft_target, known, weight,
                                   avg_factor, reduction)
        else:
            loss = self._hard_loss(cls_score, label, weight, avg_factor,
                                   reduction, ignore_index)
        return self.loss_weight * loss

    def expand(self,
               label: Tensor,
               num_channels: int,
               ignore_index: int = -100) -> Tensor:
        """Turn labels into the targets that they stand for.

        Args:
            label (Tensor): Labels (N,) or (N, H, W), int64.
            num_channels (int): Number of logits K: the classes, with or
                without a background class after them.
            ignore_index (int): Label of samples that are left out; what they
                get means nothing. Defaults to -100.

        Returns:
            Tensor: (N, K) or (N, K, H, W) float32: smoothed where the loss
            has a smoothing, else one-hot.

        Raises:
            ValueError: If the smoothing knows another number of classes.
        """
        index = label.where(label != ignore_index, 0)
        if self.smoothing is None:
            target = torch.zeros((*label.shape, num_channels),
                                 device=label.device)
            target.scatter_(-1, index[..., None], 1.)
        else:
            known = self.smoothing.num_classes
            if num_channels not in (known, known + 1):
                raise ValueError(
                    f'SoftCrossEntropyLoss.smoothing.num_classes={known}, '
                    f'but the head has {num_channels} logits; it must have '
                    'as many, or one more for the background.')
            target = self.smoothing(index)[..., :num_channels]
        return target.movedim(-1, 1)

    def _hard_loss(self, cls_score: Tensor, label: Tensor,
                   weight: Optional[Tensor],
                   avg_factor: Optional[Union[float, Tensor]], reduction: str,
                   ignore_index: int) -> Tensor:
        loss = F.cross_entropy(
            cls_score,
            label,
            weight=self._class_weight(cls_score),
            reduction='none',
            ignore_index=ignore_index)
        if (avg_factor is None and self.avg_non_ignore
                and reduction == 'mean'):
            # A number, not a tensor: on a GPU the two divide differently.
            avg_factor = (label != ignore_index).sum().item()
        if weight is not None:
            loss = loss * weight.float()
        if reduction == 'mean' and avg_factor is None:
            return loss.mean()
        return _reduce(loss, avg_factor, reduction)

    def _soft_loss(self, cls_score: Tensor, target: Tensor,
                   known: Optional[Tensor], weight: Optional[Tensor],
                   avg_factor: Optional[Union[float, Tensor]],
                   reduction: str) -> Tensor:
        logits = full_precision(cls_score)
        target = target.to(logits)
        class_weight = self._class_weight(logits)
        loss = F.cross_entropy(
            logits, target, weight=class_weight, reduction='none')
        if weight is not None:
            weight = weight.to(loss)
        if known is not None:
            # A product would let infinite losses of left out samples through.
            loss = loss.where(known, 0.)
            weight = known.to(loss) if weight is None else weight * known
        if weight is not None:
            loss = loss * weight
        if reduction == 'mean' and avg_factor is None:
            avg_factor = target_mass(target, class_weight)
            if known is not None:
                avg_factor = avg_factor.where(known, 0.)
            if weight is not None:
                avg_factor = avg_factor * weight
            avg_factor = avg_factor.sum()
        return _reduce(loss, avg_factor, reduction)

    def _class_weight(self, logits: Tensor) -> Optional[Tensor]:
        if self.class_weight is None:
            return None
        return logits.new_tensor(self.class_weight)

    def extra_repr(self) -> str:
        """Return the settings."""
        return (f'reduction={self.reduction!r}, '
                f'loss_weight={self.loss_weight}, '
                f'avg_non_ignore={self.avg_non_ignore}')


def target_mass(target: Tensor,
                class_weight: Optional[Tensor] = None) -> Tensor:
    """Return what a target counts for in a weighted mean.

    Args:
        target (Tensor): Probabilities (N, K) or (N, K, H, W).
        class_weight (Tensor, optional): (K,). Defaults to None: 1.

    Returns:
        Tensor: (N,) or (N, H, W): the sum over K of weight times target,
        which for a one-hot target is the weight of its class.
    """
    if class_weight is not None:
        shape = [-1] + [1] * (target.dim() - 2)
        target = target * class_weight.view(shape)
    return target.sum(1)


def check_soft_loss(loss: nn.Module, field: str) -> None:
    """Raise ValueError if a loss cannot learn soft targets.

    Args:
        loss (nn.Module): A head's classification loss.
        field (str): Its config field, for the message.
    """
    if not isinstance(loss, SoftCrossEntropyLoss):
        raise ValueError(
            f'{field} is {type(loss).__name__}, which learns no soft labels; '
            "use type='mmsemi.SoftCrossEntropyLoss', which takes the "
            'arguments of a softmax CrossEntropyLoss.')


def _reduce(loss: Tensor, avg_factor: Optional[Union[float, Tensor]],
            reduction: str) -> Tensor:
    if reduction == 'none':
        return loss
    total = loss.sum()
    if reduction == 'sum':
        return total
    # mmdet's guard against a division by zero.
    return total / (avg_factor + torch.finfo(torch.float32).eps)


def _check_reduction(reduction: str, field: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f'{field}={reduction!r}; allowed are '
                         f'{", ".join(map(repr, REDUCTIONS))}.')
