# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Sigmoid classification that looks at some classes of a batch alone."""
from typing import Dict, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from mmengine.fileio import load
from torch import Tensor, nn

from mmsemi.registry import MODELS
from .dense_losses import full_precision


@MODELS.register_module()
class FederatedLoss(nn.Module):
    r"""Binary cross entropy over the classes of a batch and some others.

    Images of federated data such as LVIS were searched for some classes
    alone, so of most classes a region is no certain negative; and rare
    classes would be negatives in nearly every batch. With S, the classes
    among the labels and others drawn up to ``num_sampled``,

    .. math::
        L = \frac 1 N \sum_i \sum_{k \in S} BCE(\sigma(x_{ik}), [y_i = k]).

    A class is drawn in proportion to the number of images that have it to
    the power of ``power``. X. Zhou et al., Probabilistic two-stage detection,
    2021 (arXiv 2103.07461): 50 classes, power 0.5. Their code counts the
    background as one of the 50; here it is none.

    For mmdet's box heads, as ``roi_head.bbox_head.loss_cls``, where the head
    then has C logits. Scores are sigmoids, so soft labels, which are
    probabilities of C + 1 classes, do not go with it. The paper starts with
    unlikely classes, which is a bias of -4.6 of the head's ``fc_cls``; its
    ``init_cfg`` must then name the other layers as well. What single images
    were searched for is not looked at.

    Args:
        num_classes (int): Number of classes C.
        class_counts (Sequence[int] or str, optional): Number of training
            images of each class (C,), or a JSON file with LVIS's
            ``categories``, whose ``image_count`` it is; a file of the list
            alone is enough. It is read at the first step of a training.
            Defaults to None: all classes are drawn alike.
        num_sampled (int): Number of classes, those of the batch included; if
            it has more, all of these count. Defaults to 50.
        power (float): From 0. Defaults to 0.5.
        loss_weight (float): Factor. Defaults to 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    # Heads of mmdet ask their loss for these.
    use_sigmoid = True
    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True

    def __init__(self,
                 num_classes: int,
                 class_counts: Union[Sequence[int], str, None] = None,
                 num_sampled: int = 50,
                 power: float = 0.5,
                 loss_weight: float = 1.) -> None:
        super().__init__()
        for field, value in (('num_classes', num_classes), ('num_sampled',
                                                            num_sampled)):
            if isinstance(value,
                          bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'FederatedLoss.{field}={value!r}; allowed '
                                 'are whole numbers from 1.')
        if not power >= 0:
            raise ValueError(f'FederatedLoss.power={power!r}; allowed are '
                             'numbers from 0.')
        self.num_classes = num_classes
        self.num_sampled = min(num_sampled, num_classes)
        self.power = float(power)
        self.loss_weight = float(loss_weight)
        self.class_counts = class_counts
        # How the draws weigh classes; what draws is not part of a model.
        self._log_weights: Optional[Tensor] = None
        if not isinstance(class_counts, str):
            self._read_counts()

    def forward(self,
                cls_score: Tensor,
                label: Tensor,
                weight: Optional[Tensor] = None,
                avg_factor: Optional[Union[float, Tensor]] = None,
                reduction_override: Optional[str] = None) -> Tensor:
        """Compute the loss.

        Args:
            cls_score (Tensor): Logits (N, C).
            label (Tensor): (N,) int64; C is the background.
            weight (Tensor, optional): Weights (N,). Defaults to None: 1.
            avg_factor (float or Tensor, optional): What the sum is divided
                by. Defaults to None: N, 1 if there is no sample.
            reduction_override (str, optional): 'none' or 'sum' instead of
                'mean'. Defaults to None.

        Returns:
            Tensor: The loss; (N,) with 'none'.

        Raises:
            ValueError: If the reduction is none of these.
        """
        if reduction_override not in (None, 'none', 'mean', 'sum'):
            raise ValueError(f'reduction_override={reduction_override!r}; '
                             "allowed are None, 'none', 'mean' and 'sum'.")
        target = F.one_hot(label, self.num_classes + 1)[:, :-1]
        logits = full_precision(cls_score)
        loss = F.binary_cross_entropy_with_logits(
            logits, target.to(logits), reduction='none')
        loss = (loss * self.draw(label)).sum(1) * self.loss_weight
        if weight is not None:
            loss = loss * weight
        if reduction_override == 'none':
            return loss
        if reduction_override == 'sum':
            return loss.sum()
        if avg_factor is None:
            avg_factor = max(len(label), 1)
        return loss.sum() / avg_factor

    @torch.no_grad()
    def draw(self, label: Tensor) -> Tensor:
        """Choose the classes that count.

        Args:
            label (Tensor): Labels (N,), int64; C is the background.

        Returns:
            Tensor: (C,) bool.
        """
        if self._log_weights is None:
            self._read_counts()
        present = torch.zeros(
            self.num_classes + 1, dtype=torch.bool, device=label.device)
        present = present.index_fill_(0, label, True)[:-1]
        # The largest sums with Gumbel noise are a draw without replacement.
        noise = -torch.empty(
            self.num_classes, device=label.device).exponential_().log()
        keys = self._log_weights.to(label.device) + noise
        keys = keys.masked_fill(present, torch.inf)
        best, index = keys.topk(self.num_sampled)
        drawn = torch.zeros_like(present)
        # Classes without images are never drawn.
        drawn[index] = best > -torch.inf
        return drawn | present

    def get_cls_channels(self, num_classes: int) -> int:
        """Return the number of logits of a head.

        Args:
            num_classes (int): Number of classes of the head.

        Returns:
            int: The same; there is no background.

        Raises:
            ValueError: If the loss has another number.
        """
        if num_classes != self.num_classes:
            raise ValueError(f'FederatedLoss.num_classes={self.num_classes}, '
                             f'but the head has {num_classes} classes.')
        return num_classes

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Return the scores of logits.

        Args:
            cls_score (Tensor): (N, C).

        Returns:
            Tensor: (N, C + 1), in [0, 1]; the background's is 0.
        """
        return F.pad(cls_score.sigmoid(), (0, 1))

    def get_accuracy(self, cls_score: Tensor,
                     labels: Tensor) -> Dict[str, Tensor]:
        """Return how many samples of the foreground are right.

        Args:
            cls_score (Tensor): (N, C).
            labels (Tensor): (N,) int64.

        Returns:
            dict[str, Tensor]: ``acc``, in percent; 0 without foreground.
        """
        positive = labels < self.num_classes
        right = (cls_score.argmax(1) == labels) & positive
        share = right.sum() / positive.sum().clamp(min=1)
        return dict(acc=100 * share)

    def _read_counts(self) -> None:
        counts = self.class_counts
        if counts is None:
            counts = [1] * self.num_classes
        elif isinstance(counts, str):
            categories = load(counts)
            if isinstance(categories, dict):
                categories = categories['categories']
            if not all('image_count' in c for c in categories):
                raise ValueError(
                    f'FederatedLoss.class_counts={counts!r} has categories '
                    'without image_count; it must be a file of LVIS.')
            counts = [c['image_count'] for c in categories]
        counts = torch.as_tensor(counts, dtype=torch.float32)
        fit = counts.shape == (self.num_classes, )
        if not (fit and bool((counts >= 0).all()) and bool(counts.any())):
            raise ValueError(
                'FederatedLoss.class_counts must be numbers from 0, one for '
                f'each of the {self.num_classes} classes and not all 0; '
                f'there are {counts.numel()}, from {self.class_counts!r}.')
        # With power 0 classes without images must stay out, too.
        self._log_weights = (self.power * counts.log()).where(
            counts > 0, -torch.inf)

    def extra_repr(self) -> str:
        """Return the settings."""
        return (f'num_classes={self.num_classes}, '
                f'num_sampled={self.num_sampled}, power={self.power}, '
                f'loss_weight={self.loss_weight}')
