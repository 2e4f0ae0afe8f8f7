# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""UDA for every pixel.

Q. Xie et al., Unsupervised data augmentation for consistency training,
NeurIPS 2020, section 2 and appendix: the student's distribution on the strong
view shall be the sharpened one of the weak view, where that is confident.
There is no released dense code.
"""
from typing import Dict, Sequence, Union

import torch
from torch import Tensor

from mmsemi.models.losses import (LossNormalizer, full_precision,
                                  normalize_loss, soft_cross_entropy)
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import DenseTargets
from .fixmatch import FixMatch
from .weight_schedule import check_weight

SHARPEN = ('target', 'student')


def divergence_loss(logits: Tensor,
                    prob: Tensor,
                    weight: Tensor,
                    valid: Tensor,
                    temperature: float = 0.4,
                    sharpen: str = 'target',
                    normalizer: LossNormalizer = LossNormalizer.KEPT
                    ) -> Tensor:
    """Compute the Kullback-Leibler divergence from sharpened predictions.

    Args:
        logits (Tensor): The student's, (N, C, ...).
        prob (Tensor): The teacher's probabilities, (N, C, ...).
        weight (Tensor): (N, ...), 0 where nothing is learned.
        valid (Tensor): (N, ...) bool, False on padding.
        temperature (float): Defaults to 0.4.
        sharpen (str): 'target': KL(softmax(t / T) || softmax(s)), as in the
            paper; 'student': KL(softmax(t) || softmax(s / T)), as in the
            Transfer-Learning-Library. Defaults to 'target'.
        normalizer (LossNormalizer): Defaults to ``KEPT``.

    Returns:
        Tensor: The loss.
    """
    if sharpen == 'target':
        tiny = torch.finfo(prob.dtype).tiny
        prob = (prob.clamp(min=tiny).log() / temperature).softmax(1)
    else:
        logits = full_precision(logits) / temperature
    pixel_loss = soft_cross_entropy(logits, prob, divergence=True)
    return normalize_loss(pixel_loss, weight, valid, normalizer)


@MODELS.register_module()
class UDA(FixMatch):
    """Soft, sharpened pseudo-labels of confident pixels, weak to strong.

    Args:
        segmentor (dict or str): The mmseg model.
        pseudo_label_pipeline (Sequence[dict]): Defaults to
            ``KeepConfidentPixels(conf_thr=0.8)``.
        temperature (float): Above 0. Defaults to 0.4.
        sharpen (str): See :func:`divergence_loss`. Defaults to 'target'.
        normalizer (str): Defaults to 'kept'.
        **kwargs: Arguments of :class:`FixMatch`.
    """

    needs_prob = True

    def __init__(self,
                 segmentor: Union[dict, str],
                 pseudo_label_pipeline: Sequence[dict] = (dict(
                     type='mmsemi.KeepConfidentPixels', conf_thr=0.8), ),
                 temperature: float = 0.4,
                 sharpen: str = 'target',
                 normalizer: str = 'kept',
                 **kwargs) -> None:
        check_weight(temperature, 'temperature')
        if temperature == 0:
            raise ValueError('temperature=0; allowed are numbers above 0.')
        if sharpen not in SHARPEN:
            raise ValueError(f'sharpen={sharpen!r}; allowed are {SHARPEN}.')
        super().__init__(
            segmentor,
            pseudo_label_pipeline=pseudo_label_pipeline,
            normalizer=normalizer,
            **kwargs)
        self.temperature = float(temperature)
        self.sharpen = sharpen

    def unlabeled_loss(self, logits: Tensor,
                       targets: DenseTargets) -> Dict[str, Tensor]:
        """Compute the divergence; see :class:`SemiSemanticSegmentor`."""
        return dict(
            loss=divergence_loss(logits, targets.prob, targets.weight,
                                 targets.valid, self.temperature,
                                 self.sharpen, self.normalizer))
