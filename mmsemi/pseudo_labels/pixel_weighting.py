# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A weight of every pixel by how far the teacher is from undecided.

D. Yang et al., SAM as the Guide: Mastering Pseudo-Label Refinement in
Semi-Supervised Referring Expression Segmentation (SemiRES),
ICML 2024 (arXiv 2406.01451), equation 9: pixel-wise adjustment, PWA.
"""
import math
from typing import List

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmsemi.registry import TRANSFORMS
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL, DensePseudoLabel
from .pipeline import PseudoLabelStage

SOURCES = ('foreground', 'confidence')


def pixel_weight(prob: Tensor,
                 gamma: float = 1.3,
                 mu: float = 0.5,
                 variance: float = 0.1) -> Tensor:
    """Weight pixels by a normal density turned upside down.

    w(p) = gamma - exp(-(p - mu)^2 / (2 variance)) / sqrt(2 pi variance).
    With the defaults, those of the paper: 0.038 where p = 0.5, 0.939 where
    it is 0 or 1. The paper gives 0.1 as sigma squared; the released code
    names the same number sigma.

    Args:
        prob (Tensor): Probability of the foreground, of any shape.
        gamma (float): Weight far from ``mu``, not below the density's peak.
            Defaults to 1.3.
        mu (float): Where the weight is least. Defaults to 0.5.
        variance (float): Sigma squared, above 0. Defaults to 0.1.

    Returns:
        Tensor: Of the shape of ``prob``, float.

    Raises:
        ValueError: If weights could be negative.
    """
    check_pixel_weight(gamma, variance)
    peak = 1 / math.sqrt(2 * math.pi * variance)
    prob = prob.to(torch.promote_types(prob.dtype, torch.float32))
    return gamma - peak * (-(prob - mu).square() / (2 * variance)).exp()


def check_pixel_weight(gamma: float,
                       variance: float,
                       owner: str = 'pixel_weight') -> None:
    """Raise ValueError if weights of pixels could be negative.

    Args:
        gamma (float): See :func:`pixel_weight`.
        variance (float): See :func:`pixel_weight`.
        owner (str): Whose arguments these are, for the message. Defaults to
            'pixel_weight'.
    """
    if not variance > 0:
        raise ValueError(f'{owner}.variance={variance!r}; allowed are '
                         'numbers above 0.')
    peak = 1 / math.sqrt(2 * math.pi * variance)
    if not gamma >= peak:
        raise ValueError(
            f'{owner}.gamma={gamma!r} gives negative weights with variance='
            f'{variance}; allowed are numbers from {peak:.4f}.')


@TRANSFORMS.register_module()
class PixelWeighting(PseudoLabelStage):
    """Multiply the weight of pixels by :func:`pixel_weight`.

    As in SemiRES (arXiv 2406.01451, section 3.3.3), pseudo-labels that
    proposals replaced are left as they are: of an image if ``matched`` is
    one flag, of the pixels that have the class if there is one for each.

    Args:
        gamma (float): Defaults to 1.3.
        mu (float): Defaults to 0.5.
        variance (float): Sigma squared. Defaults to 0.1.
        only_unmatched (bool): Whether matched pseudo-labels keep their
            weight; needs a stage before that writes ``matched``. False
            weights all, which is the paper's "PWA without refine". Defaults
            to True.
        source (str): 'foreground': the probability of class 1, as in the
            paper, for two classes; 'confidence': that of the class that the
            pixel has, taken as ``mu`` where it is lower, for any number of
            classes. Defaults to 'foreground'.

    Raises:
        ValueError: If an argument is out of range.
    """

    writes = ('weight', )

    def __init__(self,
                 gamma: float = 1.3,
                 mu: float = 0.5,
                 variance: float = 0.1,
                 only_unmatched: bool = True,
                 source: str = 'foreground') -> None:
        super().__init__()
        name = type(self).__name__
        check_pixel_weight(gamma, variance, name)
        if source not in SOURCES:
            raise ValueError(f'{name}.source={source!r}; allowed are '
                             f'{SOURCES}.')
        self.gamma = gamma
        self.mu = mu
        self.variance = variance
        self.only_unmatched = only_unmatched
        self.source = source
        read = 'prob' if source == 'foreground' else 'confidence'
        self.requires = ('label', 'weight', read)
        if only_unmatched:
            self.requires += ('matched', )

    def forward(self, pseudo_labels: List[DensePseudoLabel],
                data_samples: List[BaseDataElement]
                ) -> List[DensePseudoLabel]:
        """Weight a batch; see :class:`PseudoLabelStage`.

        Raises:
            ValueError: If ``source='foreground'`` and there are not two
                classes.
        """
        return [self._weighted(label) for label in pseudo_labels]

    def _weighted(self, label: DensePseudoLabel) -> DensePseudoLabel:
        if self.source == 'confidence':
            prob = label.confidence.clamp(min=self.mu)
        elif len(label.prob) == 2:
            prob = label.prob[1]
        else:
            raise ValueError(
                f'{type(self).__name__}.source={self.source!r} is for two '
                f'classes, but there are {len(label.prob)}; set '
                "source='confidence'.")
        factor = pixel_weight(prob, self.gamma, self.mu, self.variance)
        if self.only_unmatched:
            matched = label.matched
            if matched.dim():
                known = label.label != IGNORE_LABEL
                matched = matched[label.label.where(known, 0)] & known
            factor = factor.masked_fill(matched, 1.)
        label = label.new()
        label.weight = label.weight * factor.to(label.weight)
        return label
