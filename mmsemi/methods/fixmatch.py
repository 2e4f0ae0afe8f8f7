# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""FixMatch for every pixel.

K. Sohn et al., FixMatch, NeurIPS 2020, equations 3 and 4: the class that is
predicted with high confidence on the weak view is the label of the strong
view. With CutMix as in L. Yang et al., Revisiting weak-to-strong consistency
(UniMatch), CVPR 2023, section 3.1.
"""
from typing import Dict, Mapping, Optional, Sequence, Union

from torch import Tensor

from mmsemi.models.losses import LossNormalizer, dense_cross_entropy
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import DenseTargets
from .semi_semantic_segmentor import SemiSemanticSegmentor

CONFIDENT_PIXELS = (dict(type='mmsemi.KeepConfidentPixels', conf_thr=0.95), )


def with_default_momentum(teacher: Optional[dict]) -> Optional[dict]:
    """Fill in the momentum of UniMatch V2's code."""
    if isinstance(teacher, (Mapping, type(None))):
        return {'momentum': 0.004, **(teacher or {})}
    return teacher


@MODELS.register_module()
class FixMatch(SemiSemanticSegmentor):
    """Hard pseudo-labels of confident pixels, weak to strong.

    The loss is (L_x + L_s) / 2, where L_s is the cross entropy of the kept
    pixels over the number of pixels that are no padding.

    Where the sources differ: the labels come from an EMA teacher in
    evaluation mode, as in UniMatch V2's code; with
    ``teacher=dict(mode='student')`` they come from the student itself, as in
    the paper, and with ``label_in_train_mode=True`` from its training mode,
    as in UniMatch V1's code. The threshold is 0.95 everywhere in the paper
    and in V2's code; V1's code takes 0 on Cityscapes.

    Args:
        segmentor (dict or str): The mmseg model.
        pseudo_label_pipeline (Sequence[dict]): Defaults to
            ``KeepConfidentPixels(conf_thr=0.95)``.
        teacher (dict, optional): Arguments of :class:`TeacherSettings`;
            here ``momentum`` is 0.004 by default, an EMA with decay 0.996
            and warm-up.
        mix (dict, optional): Defaults to ``CutMix``; None mixes nothing.
        normalizer (str): What the sum over pixels is divided by; see
            :class:`LossNormalizer`. Defaults to 'valid'.
        sup_weight (float): Defaults to 0.5.
        unsup_weight (float or dict): Defaults to 0.5.
        **kwargs: Arguments of :class:`SemiSemanticSegmentor`.
    """

    def __init__(self,
                 segmentor: Union[dict, str],
                 pseudo_label_pipeline: Sequence[dict] = CONFIDENT_PIXELS,
                 teacher: Optional[dict] = None,
                 mix: Optional[dict] = dict(type='mmsemi.CutMix'),
                 normalizer: str = 'valid',
                 sup_weight: float = 0.5,
                 unsup_weight: Union[float, dict] = 0.5,
                 **kwargs) -> None:
        super().__init__(
            segmentor,
            pseudo_label_pipeline=pseudo_label_pipeline,
            teacher=with_default_momentum(teacher),
            mix=mix,
            sup_weight=sup_weight,
            unsup_weight=unsup_weight,
            **kwargs)
        self.normalizer = LossNormalizer.from_config(normalizer, 'normalizer')

    def unlabeled_loss(self, logits: Tensor,
                       targets: DenseTargets) -> Dict[str, Tensor]:
        """Compute L_s; see :class:`SemiSemanticSegmentor`."""
        return dict(
            loss=dense_cross_entropy(logits, targets.label, targets.weight,
                                     targets.valid, self.normalizer))
