# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Debiased self-training for every pixel.

B. Chen et al., Debiased self-training for semi-supervised learning, NeurIPS
2022. The paper and its code classify images; no version for segmentation was
published, so that how pixels are treated is a choice of this file.
"""
import math
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsemi.models.dense_forward import resize_logits
from mmsemi.models.losses import (LossNormalizer, dense_cross_entropy,
                                  full_precision, normalize_loss)
from mmsemi.models.shared_decoding import (decode_with_losses,
                                           extract_together, tapped_classifier)
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import (IGNORE_LABEL, DenseTargets,
                                                  valid_pixels)
from .multi_view_model import scale_losses
from .semi_semantic_segmentor import SemiSemanticSegmentor
from .weight_schedule import check_weight

CONFIDENT_PIXELS = (dict(type='mmsemi.KeepConfidentPixels', conf_thr=0.7), )
STRONG_LABELED_VIEW = 'sup_strong'
EPS = 1e-6


def grl_coefficient(step: int,
                    high: float = 0.1,
                    warm_up_steps: float = 1000.) -> float:
    """Return how strongly gradients are reversed.

    2 high / (1 + exp(-step / warm_up_steps)) - high, as released.

    Args:
        step (int): Optimizer step, from 0.
        high (float): The limit. Defaults to 0.1.
        warm_up_steps (float): Time constant in optimizer steps. Defaults to
            1000.

    Returns:
        float: From 0 at the start to nearly ``high``.
    """
    return high * math.tanh(step / (2 * warm_up_steps))


class GradientReversal(torch.autograd.Function):
    """Pass values on and gradients back with another sign and size.

    Y. Ganin and V. Lempitsky, Unsupervised domain adaptation by
    backpropagation, ICML 2015.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, coefficient: float) -> Tensor:
        """Return the values.

        Args:
            ctx: What autograd keeps.
            values (Tensor): Of any shape.
            coefficient (float): Gradients are multiplied by its negative.
        """
        ctx.coefficient = coefficient
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None]:
        """Return the reversed gradient."""
        return grad * -ctx.coefficient, None


def self_training_loss(logits: Tensor,
                       label: Tensor,
                       confidence: Tensor,
                       valid: Optional[Tensor] = None,
                       threshold: float = 0.7) -> Tensor:
    """Compute the cross entropy of confident labels over all valid ones.

    Args:
        logits (Tensor): (N, C, H, W) or (N, C), of the pseudo head.
        label (Tensor): (N, H, W) or (N,) int64, of the main head.
        confidence (Tensor): As ``label``; its probabilities.
        valid (Tensor, optional): As ``label``, bool. Defaults to None: all.
        threshold (float): Kept is what is more confident. Defaults to 0.7.

    Returns:
        Tensor: The loss.
    """
    return dense_cross_entropy(logits, label, confidence > threshold, valid,
                               LossNormalizer.VALID)


def worst_case_loss(worst_l: Tensor,
                    main_l: Tensor,
                    worst_u: Tensor,
                    main_u: Tensor,
                    eta_prime: float,
                    valid_l: Optional[Tensor] = None,
                    valid_u: Optional[Tensor] = None,
                    label_l: Optional[Tensor] = None) -> Tensor:
    """Compute what the worst-case head minimises (DST, equation 6).

    It agrees with the main head where labels exist and disagrees elsewhere:
    eta' CE(worst_l, label) - log(min(1, 1 - p + 1e-6)), where p is the
    probability that it gives to the main head's class of an unlabelled pixel.

    Args:
        worst_l (Tensor): (N, C, H, W) or (N, C), logits of the worst-case
            head on labelled images.
        main_l (Tensor): Of the same shape, of the main head.
        worst_u (Tensor): (M, C, H, W) or (M, C), on unlabelled images.
        main_u (Tensor): Of the same shape, of the main head.
        eta_prime (float): Weight of the labelled part; released: 2 or 1.
        valid_l (Tensor, optional): Bool, which labelled pixels count.
            Defaults to None: all.
        valid_u (Tensor, optional): The same of unlabelled pixels.
        label_l (Tensor, optional): Labels to agree with, 255 for none.
            Defaults to None: the main head's classes.

    Returns:
        Tensor: The loss, each part a mean over its valid pixels.
    """
    if label_l is None:
        label_l = main_l.argmax(1)
    labeled = dense_cross_entropy(worst_l, label_l, valid=valid_l)
    prob = full_precision(worst_u).softmax(1)
    disagreed = (1 - prob + EPS).clamp(max=1).log()
    loss = -disagreed.gather(1, main_u.argmax(1, keepdim=True)).squeeze(1)
    if valid_u is None:
        valid_u = torch.ones_like(loss, dtype=torch.bool)
    unlabeled = normalize_loss(loss, valid_u, valid_u, LossNormalizer.VALID)
    return eta_prime * labeled + unlabeled


@MODELS.register_module()
class DST(SemiSemanticSegmentor):
    """Self-training through a second head, against the worst third one.

    The main head labels unlabelled images and learns from true labels alone;
    the pseudo head learns from its labels, so that wrong ones reach the
    backbone but not the main head. The worst-case head looks for a head that
    fits the labelled images and errs on the others as much as possible; the
    backbone, behind reversed gradients, prevents it. Only the main head
    predicts, so the student stays a plain segmenter.

    Features are those that the decode head's classifier gets. The pseudo
    head's loss is one of pixels at full size, over all valid ones; the
    worst-case head's is computed at the size of the features. One backward
    pass serves all: the released code makes three before each step, whose
    gradients add up to the same.

    Where paper and released code differ, the code is the default: labelled
    images of the worst-case head take the main head's classes (``gt`` in the
    paper, ``worst_labeled_target``). The released code also learns labelled
    strong views with weight 0.1 (``strong_sup_weight``, which needs the view
    'sup_strong'); off by default.

    Args:
        segmentor (dict or str): The mmseg model.
        pseudo_label_pipeline (Sequence[dict]): Defaults to
            ``KeepConfidentPixels(conf_thr=0.7)``.
        teacher (dict, optional): Settings with ``mode='student'``, such as
            ``dict(mode='student', burn_in_steps=1000)``. Defaults to None:
            no burn-in.
        worst_weight (float): Weight of the worst-case loss. Defaults to 1.
        eta_prime (float): Weight of its labelled part. Defaults to 2.
        worst_labeled_target (str): 'main' or 'gt'. Defaults to 'main'.
        strong_sup_weight (float): Weight of the supervised loss on the view
            'sup_strong', times ``sup_weight``. Defaults to 0.
        head_channels (int, optional): Hidden channels of both heads. Defaults
            to None: as many as the features have.
        head_dropout (float): Dropout in both heads, in [0, 1). Defaults to
            0.5, as released.
        reversal (float): Limit of the reversal's coefficient. Defaults to
            0.1.
        reversal_warm_up (float): See :func:`grl_coefficient`. Defaults to
            1000 optimizer steps.
        label_in_train_mode (bool): Whether the labels come from the pass that
            the worst-case head learns from, as released, or from one of their
            own in evaluation mode. Defaults to True.
        **kwargs: Arguments of :class:`SemiSemanticSegmentor`;
            ``unsup_weight`` is the weight of the pseudo head's loss.

    Raises:
        ValueError: If an argument is out of range, or the segmenter's
            classifier gets no features of its own.
    """

    passes_text = False

    def __init__(self,
                 segmentor: Union[dict, str],
                 pseudo_label_pipeline: Any = CONFIDENT_PIXELS,
                 teacher: Optional[dict] = None,
                 worst_weight: float = 1.,
                 eta_prime: float = 2.,
                 worst_labeled_target: str = 'main',
                 strong_sup_weight: float = 0.,
                 head_channels: Optional[int] = None,
                 head_dropout: float = 0.5,
                 reversal: float = 0.1,
                 reversal_warm_up: float = 1000.,
                 label_in_train_mode: bool = True,
                 **kwargs) -> None:
        for field, value in (('worst_weight', worst_weight),
                             ('eta_prime', eta_prime),
                             ('strong_sup_weight', strong_sup_weight),
                             ('reversal', reversal)):
            check_weight(value, field)
        if not 0 <= head_dropout < 1:
            raise ValueError(f'head_dropout={head_dropout!r}; allowed are '
                             'numbers from 0 to below 1.')
        if not 0 < reversal_warm_up < math.inf:
            raise ValueError(f'reversal_warm_up={reversal_warm_up!r}; allowed '
                             'are finite numbers above 0.')
        if head_channels is not None and head_channels < 1:
            raise ValueError(f'head_channels={head_channels!r}; allowed are '
                             'whole numbers from 1, and None.')
        if worst_labeled_target not in ('main', 'gt'):
            raise ValueError(f'worst_labeled_target={worst_labeled_target!r};'
                             " allowed are 'main' and 'gt'.")
        if teacher is None:
            teacher = dict(mode='student')
        super().__init__(
            segmentor,
            pseudo_label_pipeline=pseudo_label_pipeline,
            teacher=teacher,
            label_in_train_mode=label_in_train_mode,
            **kwargs)
        if self.teacher is not None:
            raise ValueError(
                f'DST.teacher.mode={self.teacher_settings.mode!r}; allowed '
                "is 'student': the main head itself labels.")
        self.worst_weight = float(worst_weight)
        self.eta_prime = float(eta_prime)
        self.worst_labeled_target = worst_labeled_target
        self.strong_sup_weight = float(strong_sup_weight)
        self.reversal = float(reversal)
        self.reversal_warm_up = float(reversal_warm_up)
        if strong_sup_weight:
            self.views = self.views + (STRONG_LABELED_VIEW, )
        self.pseudo_head = self._make_head(head_channels, head_dropout)
        self.worst_head = self._make_head(head_channels, head_dropout)

    def _make_head(self, hidden: Optional[int],
                   dropout: float) -> nn.Sequential:
        head = self.student.decode_head
        if isinstance(head, nn.ModuleList):
            head = head[-1]
        classifier = head.conv_seg
        channels = classifier.in_channels
        hidden = hidden or channels
        return nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv2d(hidden, classifier.out_channels, 1))

    # Training -------------------------------------------------------------

    def supervised_loss(self, inputs: Tensor,
                        data_samples: list) -> Dict[str, Tensor]:
        """Compute the losses of the burn-in; see :class:`TeacherStudent`."""
        losses = super().supervised_loss(inputs, data_samples)
        # Distributed training expects a gradient for every weight.
        idle = sum(
            param.sum() for head in (self.pseudo_head, self.worst_head)
            for param in head.parameters())
        losses['unsup_loss_idle'] = 0. * idle
        return losses

    def semi_supervised_loss(self, inputs: Dict[str, Tensor],
                             data_samples: Dict[str, list],
                             step: int) -> Dict[str, Tensor]:
        """Compute all losses; see :class:`TeacherStudent`."""
        labeled, weak = inputs['sup'], inputs['unsup_teacher']
        samples, weak_samples = data_samples['sup'], data_samples[
            'unsup_teacher']
        losses, features, logits = self._labeled_and_weak(
            labeled, samples, weak)
        losses = scale_losses(losses, self.sup_weight, 'sup_')
        if self.strong_sup_weight:
            losses.update(
                scale_losses(
                    self.student.loss(inputs[STRONG_LABELED_VIEW],
                                      data_samples[STRONG_LABELED_VIEW]),
                    self.sup_weight * self.strong_sup_weight, 'sup_strong_'))

        coefficient = grl_coefficient(step, self.reversal,
                                      self.reversal_warm_up)
        worst, disagreement = self._worst_case(features, logits, samples,
                                               weak_samples, weak,
                                               coefficient)
        losses['unsup_loss_worst'] = self.worst_weight * worst
        losses.update(disagreement)

        if self.label_in_train_mode:
            pseudo_labels = self.pseudo_labels_of(
                resize_logits(self.student, logits[1], weak.shape[2:]),
                weak_samples, weak)
        else:
            pseudo_labels = self.label_unlabeled(weak, weak_samples)
        unsup_losses, _ = self.loss_by_pseudo_labels(inputs, data_samples,
                                                     pseudo_labels)
        losses.update(
            scale_losses(unsup_losses, self.unsup_weight(step), 'unsup_'))
        losses.update(self.pseudo_label_figures(pseudo_labels, weak_samples))
        return losses

    def loss_by_pseudo_labels(self, inputs: Dict[str, Tensor],
                              data_samples: Dict[str, list],
                              pseudo_labels: list
                              ) -> Tuple[Dict[str, Tensor], float]:
        """Compute the pseudo head's loss; see :class:`TeacherStudent`."""
        targets = DenseTargets.from_pseudo_labels(pseudo_labels)
        images, targets = self.mixed(inputs, data_samples, targets)
        features, _, _ = self._decode(self.student.extract_feat(images), [])
        logits = resize_logits(self.student, self.pseudo_head(features),
                               images.shape[2:])
        return self.unlabeled_loss(logits, targets), 1.

    def unlabeled_loss(self, logits: Tensor,
                       targets: DenseTargets) -> Dict[str, Tensor]:
        """Compute L_st; see :class:`SemiSemanticSegmentor`."""
        return dict(
            loss_st=dense_cross_entropy(logits, targets.label, targets.weight,
                                        targets.valid, LossNormalizer.VALID))

    def _decode(self, features: Any,
                samples: list) -> Tuple[Tensor, Tensor, Dict[str, Tensor]]:
        """Return the classifier's features, logits and supervised losses."""
        with tapped_classifier(self.student) as noted:
            logits, losses = decode_with_losses(self.student, features,
                                                samples)
        if not noted:
            raise ValueError(
                'segmentor.decode_head does not classify by cls_seg, so its '
                'features cannot be shared with the other heads of '
                'mmsemi.DST.')
        return noted[0], logits, losses

    def _labeled_and_weak(
        self, labeled: Tensor, samples: list, weak: Tensor
    ) -> Tuple[Dict[str, Tensor], List[Tensor], List[Tensor]]:
        """Return supervised losses, and features and logits of both parts."""
        parts = extract_together(self.student, [labeled, weak])
        features, logits, losses = self._decode(parts[0], samples)
        logits = logits.detach()
        if len(parts) == 1:
            sizes = [len(labeled), len(weak)]
            return losses, features.split(sizes), logits.split(sizes)
        weak_features, weak_logits, _ = self._decode(parts[1], [])
        return losses, [features, weak_features
                        ], [logits, weak_logits.detach()]

    def _worst_case(self, features: List[Tensor], logits: List[Tensor],
                    samples: list, weak_samples: list, weak: Tensor,
                    coefficient: float) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Return the worst-case loss and how often the heads disagree."""
        worst = [
            self.worst_head(GradientReversal.apply(part, coefficient))
            for part in features
        ]
        main = [
            resize_logits(self.student, own, other.shape[2:])
            for own, other in zip(logits, worst)
        ]
        truth = torch.stack([s.gt_sem_seg.data for s in samples])
        truth = _shrink(truth, worst[0])
        valid = [
            truth != IGNORE_LABEL,
            _shrink(
                valid_pixels(weak_samples, weak.shape[2:],
                             weak.device)[:, None], worst[1])
        ]
        loss = worst_case_loss(
            worst[0], main[0], worst[1], main[1], self.eta_prime, *valid,
            truth if self.worst_labeled_target == 'gt' else None)
        figures = {}
        for name, a, b, mask in zip(('labeled', 'unlabeled'), worst, main,
                                    valid):
            differ = (a.argmax(1) != b.argmax(1)) & mask
            figures[f'pseudo/worst_disagreement_{name}'] = \
                differ.sum() / mask.sum().clamp(min=1)
        return loss, figures

    # Weights --------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args,
                              **kwargs) -> None:
        """Keep both heads where a plain segmenter is loaded."""
        is_plain = not any(
            key.startswith(f'{prefix}student.') for key in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if is_plain:
            for name in ('pseudo_head', 'worst_head'):
                for key, value in getattr(self, name).state_dict().items():
                    state_dict[f'{prefix}{name}.{key}'] = value


def _shrink(values: Tensor, like: Tensor) -> Tensor:
    """Take the nearest values (N, 1, H, W) at another size, (N, h, w)."""
    shrunk = F.interpolate(values.float(), like.shape[2:], mode='nearest')
    return shrunk.squeeze(1).to(values.dtype)
