# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""UniMatch, versions 1 and 2.

L. Yang et al., Revisiting weak-to-strong consistency in semi-supervised
semantic segmentation, CVPR 2023 (arXiv 2208.09910), equations 4 to 7: two
strong views and a feature perturbation learn from one weak view. L. Yang et
al., UniMatch V2, arXiv 2410.10777: an EMA teacher labels, and complementary
dropout of channels joins both perturbations in the strong views.
"""
from typing import Dict, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsemi.models.dense_forward import (Features, cat_features, decode,
                                         loss_from_features, map_features,
                                         resize_logits, split_features)
from mmsemi.models.losses import LossNormalizer, dense_cross_entropy
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import DenseTargets
from .fixmatch import CONFIDENT_PIXELS, FixMatch
from .multi_view_model import scale_losses
from .teacher_student import VIEWS

SECOND_STUDENT_VIEW = 'unsup_student_2'


def thresholded_loss(logits: Tensor, label: Tensor, confidence: Tensor,
                     valid: Tensor, threshold: float) -> Tensor:
    """Compute the cross entropy of confident pixels over all valid ones.

    UniMatch, equation 2, as released: the sum over the pixels with at least
    the threshold's confidence, divided by the pixels that are no padding.

    Args:
        logits (Tensor): (N, C, H, W).
        label (Tensor): (N, H, W) int64.
        confidence (Tensor): (N, H, W).
        valid (Tensor): (N, H, W) bool, False on padding.
        threshold (float): In [0, 1].

    Returns:
        Tensor: The loss; 0 if nothing is kept.
    """
    return dense_cross_entropy(logits, label,
                               (confidence >= threshold).to(confidence),
                               valid, LossNormalizer.VALID)


def complementary_dropout(features: Features,
                          num_pairs: int,
                          keep_share: float = 0.5) -> Features:
    """Drop channels of one strong view that the other one keeps.

    For each pair of views a channel is doubled in one and zero in the other.
    For a share of the pairs, drawn at random, nothing is dropped. Levels with
    equal numbers of channels share the draw (UniMatch V2, section 3.3).

    Args:
        features (Features): Tensors (2 * num_pairs, C, ...), nested; first
            all first views, then all second views.
        num_pairs (int): Number of images.
        keep_share (float): Share of pairs without dropout, rounded down.
            Defaults to 0.5.

    Returns:
        Features: Perturbed.
    """
    whole = torch.randperm(num_pairs)[:int(num_pairs * keep_share)]
    scales: Dict[int, Tensor] = {}

    def perturb(feature: Tensor) -> Tensor:
        channels = feature.shape[1]
        if channels not in scales:
            drawn = 2. * torch.randint(0, 2, (num_pairs, channels))
            drawn[whole] = 1.
            scales[channels] = torch.cat([drawn, 2 - drawn])
        scale = scales[channels].to(feature)
        return feature * scale.reshape(scale.shape + (1, ) *
                                       (feature.dim() - 2))

    return map_features(features, perturb)


class _TwoStrongViews(FixMatch):
    """What both versions share."""

    views = VIEWS + (SECOND_STUDENT_VIEW, )
    passes_text = False

    def _mixed_views(
            self, inputs: Dict[str, Tensor], data_samples: Dict[str, list],
            targets: DenseTargets
    ) -> Tuple[Tensor, Tuple[DenseTargets, DenseTargets]]:
        """Return both strong views, mixed, as one batch, and their targets."""
        others = self.partner_targets(inputs, data_samples)
        first = self.mixed(inputs, data_samples, targets, others=others)
        second = self.mixed(inputs, data_samples, targets,
                            SECOND_STUDENT_VIEW, others)
        return torch.cat([first[0], second[0]]), (first[1], second[1])


@MODELS.register_module()
class UniMatch(_TwoStrongViews):
    """Two strong views and one perturbation of the weak view's features.

    The loss is (L_x + 0.25 L_s1 + 0.25 L_s2 + 0.5 L_fp) / 2 (equation 7).
    Labelled and weak images share one pass through the backbone; the weak
    view's logits label, and its features are decoded a second time with half
    of their channels dropped. There is no teacher: the student labels in
    training mode, as in the released code; ``teacher=dict(mode='ema')`` lets
    a teacher label.

    Where the sources differ: the partner of CutMix is another image of the
    batch as in the paper; in the released code it is another crop of the same
    image (see :class:`SemiSemanticSegmentor`), labelled in evaluation mode.
    The threshold on Cityscapes is 0.95 in the first version of the paper and
    0 in the code and the final version.

    Args:
        segmentor (dict or str): The mmseg model.
        pseudo_label_pipeline (Sequence[dict]): Defaults to
            ``KeepConfidentPixels(conf_thr=0.95)``.
        teacher (dict, optional): Defaults to ``dict(mode='student')``.
        strong_weights (tuple[float, float]): Weights of L_s1 and L_s2.
            Defaults to (0.25, 0.25).
        feature_weight (float): Weight of L_fp. Defaults to 0.5.
        feature_drop (float): Share of channels dropped from each level, in
            [0, 1). Defaults to 0.5.
        **kwargs: Arguments of :class:`FixMatch`.
    """

    def __init__(self,
                 segmentor: Union[dict, str],
                 pseudo_label_pipeline: Sequence[dict] = CONFIDENT_PIXELS,
                 teacher: Optional[dict] = None,
                 strong_weights: Tuple[float, float] = (0.25, 0.25),
                 feature_weight: float = 0.5,
                 feature_drop: float = 0.5,
                 **kwargs) -> None:
        if not 0 <= feature_drop < 1:
            raise ValueError(f'feature_drop={feature_drop!r}; allowed are '
                             'numbers from 0 to below 1.')
        super().__init__(
            segmentor,
            pseudo_label_pipeline=pseudo_label_pipeline,
            teacher=dict(mode='student') if teacher is None else teacher,
            **kwargs)
        self.strong_weights = tuple(strong_weights)
        self.feature_weight = float(feature_weight)
        self.feature_drop = float(feature_drop)

    def semi_supervised_loss(self, inputs: Dict[str, Tensor],
                             data_samples: Dict[str, list],
                             step: int) -> Dict[str, Tensor]:
        """Compute all losses; see :class:`TeacherStudent`."""
        model, weak = self.student, inputs['unsup_teacher']
        size = weak.shape[2:]
        labeled, features = self._shared_features(inputs['sup'], weak)
        losses = scale_losses(
            loss_from_features(model, labeled, data_samples['sup']),
            self.sup_weight, 'sup_')

        perturbed = map_features(
            features, lambda x: F.dropout2d(x, self.feature_drop))
        weak_logits, fp_logits = resize_logits(
            model, decode(model, cat_features(features, perturbed)),
            size).chunk(2)
        if self.teacher is None:
            pseudo_labels = self.pseudo_labels_of(
                weak_logits, data_samples['unsup_teacher'], weak)
        else:
            pseudo_labels = self.label_unlabeled(
                weak, data_samples['unsup_teacher'])
        targets = DenseTargets.from_pseudo_labels(pseudo_labels)

        images, mixed = self._mixed_views(inputs, data_samples, targets)
        strong = resize_logits(model,
                               decode(model, model.extract_feat(images)),
                               size).chunk(2)
        parts = dict(
            loss_s1=(strong[0], mixed[0], self.strong_weights[0]),
            loss_s2=(strong[1], mixed[1], self.strong_weights[1]),
            loss_fp=(fp_logits, targets, self.feature_weight))
        unsup = {
            name: self.unlabeled_loss(logits, target)['loss'] * weight
            for name, (logits, target, weight) in parts.items()
        }
        losses.update(scale_losses(unsup, self.unsup_weight(step), 'unsup_'))
        losses.update(
            self.pseudo_label_figures(pseudo_labels,
                                      data_samples['unsup_teacher']))
        return losses

    def _shared_features(self, labeled: Tensor,
                         weak: Tensor) -> Tuple[Features, Features]:
        """Run the backbone once, where both have one size."""
        if labeled.shape[1:] != weak.shape[1:]:
            return (self.student.extract_feat(labeled),
                    self.student.extract_feat(weak))
        return split_features(
            self.student.extract_feat(torch.cat([labeled, weak])),
            len(labeled))


@MODELS.register_module()
class UniMatchV2(_TwoStrongViews):
    """Two strong views with complementary dropout, labelled by a teacher.

    The loss is (L_x + (L_s1 + L_s2) / 2) / 2. The paper and the released code
    agree; there CutMix's partner is ``partner='batch_flip'``, and the teacher
    averages integer buffers too, which breaks some backbones; here these are
    copied.

    Args:
        segmentor (dict or str): The mmseg model.
        dropout_keep_share (float): Share of images whose views keep all
            channels, in [0, 1]. Defaults to 0.5.
        **kwargs: Arguments of :class:`FixMatch`.
    """

    def __init__(self,
                 segmentor: Union[dict, str],
                 dropout_keep_share: float = 0.5,
                 **kwargs) -> None:
        if not 0 <= dropout_keep_share <= 1:
            raise ValueError(f'dropout_keep_share={dropout_keep_share!r}; '
                             'allowed are numbers from 0 to 1.')
        super().__init__(segmentor, **kwargs)
        self.dropout_keep_share = float(dropout_keep_share)

    def loss_by_pseudo_labels(self, inputs: Dict[str, Tensor],
                              data_samples: Dict[str, list],
                              pseudo_labels: list
                              ) -> Tuple[Dict[str, Tensor], float]:
        """Compute the student's loss; see :class:`TeacherStudent`."""
        targets = DenseTargets.from_pseudo_labels(pseudo_labels)
        images, mixed = self._mixed_views(inputs, data_samples, targets)
        features = complementary_dropout(
            self.student.extract_feat(images),
            len(images) // 2, self.dropout_keep_share)
        logits = resize_logits(self.student, decode(self.student, features),
                               images.shape[2:]).chunk(2)
        return {
            f'loss_s{i + 1}':
            self.unlabeled_loss(part, target)['loss'] / 2
            for i, (part, target) in enumerate(zip(logits, mixed))
        }, 1.
