# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""SemiRES: pseudo-labels refined by mask proposals, or weighted.

D. Yang et al., SAM as the Guide: Mastering Pseudo-Label Refinement in
Semi-Supervised Referring Expression Segmentation (SemiRES),
ICML 2024 (arXiv 2406.01451). After a burn-in, teacher and student start
equal (equations 1 and 2). The teacher's mask of the weak view is replaced by
what mask proposals make of it (IOM: equation 6, CPI: equations 7 and 8); one
that matches none is learned from with a weight per pixel (PWA: equations 9
and 10). The loss is L = lambda_sup L_sup + lambda_unsup L_unsup (equation
4), the teacher an average of the student (equation 5).
"""
from typing import Dict, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsemi.models.dense_forward import num_classes, resize_logits
from mmsemi.models.losses import full_precision
from mmsemi.models.shared_decoding import decode_with_losses, extract_together
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL, DenseTargets
from .multi_view_model import scale_losses
from .semi_semantic_segmentor import SemiSemanticSegmentor

#: CPI-U with the threshold of the paper's main table, then PWA.
REFINEMENT = (dict(type='mmsemi.RefineByProposals', strategy='cpi_u'),
              dict(type='mmsemi.PixelWeighting'))
REDUCTIONS = ('group_mean', 'sample_mean')


def matched_unmatched_loss(logits: Tensor,
                           label: Tensor,
                           weight: Tensor,
                           matched: Tensor,
                           valid: Optional[Tensor] = None,
                           class_weight: Optional[Sequence[float]] = (.9, 1.1),
                           reduction: str = 'group_mean') -> Tensor:
    """Compute the cross entropy of refined and of weighted pseudo-labels.

    Every image gives the mean over its pixels of weight times cross entropy.
    Images whose pseudo-label was matched have class weights on top, as in
    the released code.

    Args:
        logits (Tensor): (N, C, H, W).
        label (Tensor): (N, H, W) int64, 255 where not known.
        weight (Tensor): (N, H, W), of the pixels.
        matched (Tensor): (N,) bool: proposals replaced the pseudo-label.
        valid (Tensor, optional): (N, H, W) bool, False on padding. Defaults
            to None: no padding.
        class_weight (Sequence[float], optional): C weights, for matched
            images. Defaults to (0.9, 1.1), those of the released code for
            background and object.
        reduction (str): 'group_mean': the mean over matched images plus that
            over the others, halved if there are both (released code: one
            matched image of three counts as much as the two others);
            'sample_mean': the mean over all images (equation 10 knows no
            groups). Defaults to 'group_mean'.

    Returns:
        Tensor: The loss, 0 of an empty batch.

    Raises:
        ValueError: If ``reduction`` is none of the two.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction={reduction!r}; allowed are '
                         f'{REDUCTIONS}.')
    logits = full_precision(logits)
    known = label != IGNORE_LABEL
    pixel_loss = F.cross_entropy(
        logits, label, ignore_index=IGNORE_LABEL, reduction='none')
    if valid is None:
        valid = torch.ones_like(known)
    weight = weight.to(pixel_loss) * (known & valid)
    if class_weight is not None:
        by_class = logits.new_tensor(class_weight)[label.where(known, 0)]
        weight = weight.where(~matched[:, None, None], weight * by_class)
    # A product would let infinite losses of left out pixels through.
    total = (pixel_loss.where(weight > 0, 0.) * weight).sum((1, 2))
    loss = total / valid.sum((1, 2)).clamp(min=1)
    if reduction == 'sample_mean':
        return loss.sum() / max(len(loss), 1)
    groups = torch.stack([matched, ~matched]).to(loss)
    sizes = groups.sum(1)
    means = (groups @ loss) / sizes.clamp(min=1)
    return means.sum() / (sizes > 0).sum().clamp(min=1)


@MODELS.register_module()
class SemiRES(SemiSemanticSegmentor):
    """Refined or weighted pseudo-labels, for referring segmentation.

    It trains any segmenter of maps, too: nothing in it needs sentences. With
    more than two classes an image counts as matched if a class of it was,
    and ``class_weight`` needs as many weights.

    Where paper and released code differ, or the paper is silent: the
    teacher's decay is 0.996 in the paper (the default here) and 0.9996 in
    the code; lambda_sup is not in the paper, and 1 or 10 in the code
    (default 1). The code averages integer buffers, too, and normalises
    strong views twice; here integer buffers are copied, and views are what
    the pipelines of the config make.

    Args:
        segmentor (dict or str): The model, such as
            ``mmsemi.ReferringSegmentor``.
        pseudo_label_pipeline (Sequence[dict]): Defaults to
            ``RefineByProposals`` with CPI-U and ``PixelWeighting``. Without
            a stage that refines, no pseudo-label counts as matched; an empty
            pipeline is the paper's baseline.
        teacher (dict, optional): Arguments of :class:`TeacherSettings`; here
            ``momentum`` is 0.004 and ``warm_up_gamma`` 0 by default.
        class_weight (Sequence[float], optional): See
            :func:`matched_unmatched_loss`. Defaults to (0.9, 1.1).
        reduction (str): See :func:`matched_unmatched_loss`. Defaults to
            'group_mean'.
        joint_forward (bool): Whether labelled and unlabelled images of one
            size pass the student as one batch, which its batch norms see as
            a whole, as in the released code. Defaults to True.
        **kwargs: Arguments of :class:`SemiSemanticSegmentor`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 segmentor: Union[dict, str],
                 pseudo_label_pipeline: Sequence[dict] = REFINEMENT,
                 teacher: Optional[dict] = None,
                 class_weight: Optional[Sequence[float]] = (.9, 1.1),
                 reduction: str = 'group_mean',
                 joint_forward: bool = True,
                 **kwargs) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(f'reduction={reduction!r}; allowed are '
                             f'{REDUCTIONS}.')
        super().__init__(
            segmentor,
            pseudo_label_pipeline=pseudo_label_pipeline,
            teacher={
                'momentum': .004,
                'warm_up_gamma': 0.,
                **(teacher or {})
            },
            **kwargs)
        classes = num_classes(self.student)
        if class_weight is not None and len(class_weight) != classes:
            raise ValueError(f'class_weight={class_weight!r}; the segmenter '
                             f'has {classes} classes, so allowed are None '
                             'and as many weights.')
        self.class_weight = class_weight
        self.reduction = reduction
        self.joint_forward = joint_forward

    def unlabeled_loss(self, logits: Tensor,
                       targets: DenseTargets) -> Dict[str, Tensor]:
        """Compute L_unsup; see :class:`SemiSemanticSegmentor`."""
        matched = targets.matched
        if matched is None:
            matched = torch.zeros(
                len(logits), dtype=torch.bool, device=logits.device)
        elif matched.dim() > 1:
            matched = matched.any(1)
        return dict(
            loss=matched_unmatched_loss(
                logits, targets.label, targets.weight, matched,
                targets.valid, self.class_weight, self.reduction))

    def semi_supervised_loss(self, inputs: Dict[str, Tensor],
                             data_samples: Dict[str, list],
                             step: int) -> Dict[str, Tensor]:
        """Join both batches in one pass; see :class:`TeacherStudent`."""
        labeled = inputs['sup']
        if (not self.joint_forward
                or labeled.shape[1:] != inputs['unsup_student'].shape[1:]):
            return super().semi_supervised_loss(inputs, data_samples, step)
        pseudo_labels = self.label_unlabeled(inputs['unsup_teacher'],
                                             data_samples['unsup_teacher'])
        images, targets = self.mixed(
            inputs, data_samples,
            DenseTargets.from_pseudo_labels(pseudo_labels))
        features, = extract_together(
            self.student, [labeled, images],
            [data_samples['sup'], data_samples['unsup_student']])
        logits, sup = decode_with_losses(self.student, features,
                                         data_samples['sup'])
        unsup = self.unlabeled_loss(
            resize_logits(self.student, logits[len(labeled):],
                          images.shape[2:]), targets)
        return {
            **scale_losses(sup, self.sup_weight, 'sup_'),
            **scale_losses(unsup, self.unsup_weight(step), 'unsup_'),
            **self.pseudo_label_figures(pseudo_labels,
                                        data_samples['unsup_teacher'])
        }
