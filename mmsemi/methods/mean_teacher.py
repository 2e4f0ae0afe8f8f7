# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Mean Teacher and CutMix-MT for every pixel.

A. Tarvainen and H. Valpola, Mean teachers are better role models, NeurIPS
2017. G. French et al., Semi-supervised semantic segmentation needs strong,
varied perturbations, BMVC 2020: the same with CutMix.
"""
from typing import Dict, Optional, Union

import torch
from torch import Tensor

from mmsemi.models.dense_forward import (dense_logits, extract_features,
                                         resize_logits)
from mmsemi.models.losses import LossNormalizer, full_precision, normalize_loss
from mmsemi.models.shared_decoding import decode_with_losses
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import DenseTargets
from .multi_view_model import scale_losses
from .semi_semantic_segmentor import SemiSemanticSegmentor


def consistency_loss(logits: Tensor,
                     prob: Tensor,
                     valid: Optional[Tensor] = None,
                     conf_thr: float = 0.,
                     conf_per_pixel: bool = True,
                     average_classes: bool = False) -> Tensor:
    """Compute the squared distance of student and teacher.

    Args:
        logits (Tensor): The student's, (N, C, H, W).
        prob (Tensor): The teacher's probabilities, (N, C, H, W).
        valid (Tensor, optional): (N, H, W) bool, False on padding. Defaults
            to None: no padding.
        conf_thr (float): Least confidence of the teacher. Defaults to 0.
        conf_per_pixel (bool): Whether less confident pixels are left out
            (the sum is still divided by all valid pixels). If not, the share
            of confident pixels weights the whole loss, as in the released
            code of CutMix-MT. Defaults to True.
        average_classes (bool): Whether to take the mean over the classes
            instead of their sum. Defaults to False.

    Returns:
        Tensor: The loss.
    """
    distance = (full_precision(logits).softmax(1) - prob).square()
    distance = distance.mean(1) if average_classes else distance.sum(1)
    if valid is None:
        valid = torch.ones_like(distance, dtype=torch.bool)
    weight = ((prob.amax(1) >= conf_thr) & valid).to(distance)
    if not conf_per_pixel:
        share = weight.sum() / valid.sum().clamp(min=1)
        weight = share * valid
    return normalize_loss(distance, weight, valid, LossNormalizer.VALID)


@MODELS.register_module()
class MeanTeacher(SemiSemanticSegmentor):
    """Consistency with the probabilities of an averaged teacher.

    With ``mix=dict(type='mmsemi.BoxMix', num_boxes=1, area_range=(0.5,
    0.5))`` this is CutMix-MT. Then the released code has ``conf_thr=0.97``
    and ``conf_per_pixel=False``.

    The Mean Teacher of CPS's released code takes the mean over the classes
    times 100 (``average_classes=True``, ``unsup_weight=100``) on labelled
    and unlabelled images (``use_labeled=True``), and a teacher in training
    mode; here it always evaluates.

    Args:
        segmentor (dict or str): The mmseg model.
        conf_thr (float): See :func:`consistency_loss`. Defaults to 0.
        conf_per_pixel (bool): See :func:`consistency_loss`. Defaults to
            True.
        average_classes (bool): See :func:`consistency_loss`. Defaults to
            False.
        use_labeled (bool): Whether the labelled images count too, without
            mixing. Defaults to False.
        **kwargs: Arguments of :class:`SemiSemanticSegmentor`. Stages that
            set weights have no effect here and are refused.
    """

    needs_prob = True

    def __init__(self,
                 segmentor: Union[dict, str],
                 conf_thr: float = 0.,
                 conf_per_pixel: bool = True,
                 average_classes: bool = False,
                 use_labeled: bool = False,
                 **kwargs) -> None:
        if not 0 <= conf_thr <= 1:
            raise ValueError(f'conf_thr={conf_thr!r}; allowed are numbers '
                             'from 0 to 1.')
        if kwargs.get('pseudo_label_pipeline'):
            raise ValueError(
                'MeanTeacher compares all probabilities and takes no '
                'pseudo_label_pipeline; use conf_thr, or mmsemi.UDA.')
        super().__init__(segmentor, **kwargs)
        self.conf_thr = float(conf_thr)
        self.conf_per_pixel = conf_per_pixel
        self.average_classes = average_classes
        self.use_labeled = use_labeled

    def unlabeled_loss(self, logits: Tensor,
                       targets: DenseTargets) -> Dict[str, Tensor]:
        """Compute the consistency; see :class:`SemiSemanticSegmentor`."""
        return dict(
            loss_consistency=consistency_loss(
                logits, targets.prob, targets.valid, self.conf_thr,
                self.conf_per_pixel, self.average_classes))

    def semi_supervised_loss(self, inputs: Dict[str, Tensor],
                             data_samples: Dict[str, list],
                             step: int) -> Dict[str, Tensor]:
        """Add the labelled images; see :class:`TeacherStudent`."""
        if not self.use_labeled:
            return super().semi_supervised_loss(inputs, data_samples, step)
        images, samples = inputs['sup'], data_samples['sup']
        features = extract_features(self.student, images, samples)
        decoded, sup = decode_with_losses(self.student, features, samples)
        losses = scale_losses(sup, self.sup_weight, 'sup_')
        logits = [resize_logits(self.student, decoded, images.shape[2:])]
        # Two batches may differ in size, and share the loss by images.
        targets = [
            DenseTargets.from_pseudo_labels(
                self.label_unlabeled(images, samples))
        ]
        pseudo_labels = self.label_unlabeled(inputs['unsup_teacher'],
                                             data_samples['unsup_teacher'])
        mixed, mixed_targets = self.mixed(
            inputs, data_samples,
            DenseTargets.from_pseudo_labels(pseudo_labels))
        logits.append(
            dense_logits(self.student, mixed, data_samples['unsup_student']))
        targets.append(mixed_targets)
        total = sum(len(part) for part in logits)
        loss = sum(
            self.unlabeled_loss(part, target)['loss_consistency'] *
            (len(part) / total) for part, target in zip(logits, targets))
        losses.update(
            scale_losses(
                dict(loss_consistency=loss), self.unsup_weight(step),
                'unsup_'))
        losses.update(
            self.pseudo_label_figures(pseudo_labels,
                                      data_samples['unsup_teacher']))
        return losses
