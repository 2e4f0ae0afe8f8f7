# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Ask the heads of a segmenter for probabilities of all classes.

A head or fusion head that can give ``soft_labels`` (N, C + 1) with its
instances, background last, has the attribute ``emit_soft_labels``. It is
False by default, and then the head predicts as mmdet's does.
"""
from contextlib import contextmanager
from typing import Iterator, List

from torch import nn

from mmsemi.models.dense_heads import QueryFusionHead, SoftLabelQueryMixin
from mmsemi.models.roi_heads import SoftLabelBBoxMixin, SoftLabelRoIHead

# What gives soft labels, what learns them, and what to use.
PARTNERS = ((QueryFusionHead, SoftLabelQueryMixin,
             'mmsemi.SoftLabelMask2FormerHead'),
            (SoftLabelBBoxMixin, SoftLabelRoIHead, 'mmsemi.SoftLabelRoIHead'))


def soft_label_modules(model: nn.Module) -> List[nn.Module]:
    """Return the modules of a model that can give soft labels.

    Args:
        model (nn.Module): A segmenter.

    Returns:
        list[nn.Module]: Those with ``emit_soft_labels``.
    """
    return [m for m in model.modules() if hasattr(m, 'emit_soft_labels')]


@contextmanager
def emitting_soft_labels(model: nn.Module) -> Iterator[nn.Module]:
    """Let all modules that can give soft labels, and restore them after.

    Args:
        model (nn.Module): A segmenter.

    Yields:
        nn.Module: The same.
    """
    modules = soft_label_modules(model)
    before = [module.emit_soft_labels for module in modules]
    try:
        for module in modules:
            module.emit_soft_labels = True
        yield model
    finally:
        for module, value in zip(modules, before):
            module.emit_soft_labels = value


def check_soft_label_heads(model: nn.Module) -> None:
    """Refuse a segmenter that cannot give soft labels or not learn them.

    Args:
        model (nn.Module): A segmenter.

    Raises:
        ValueError: If no head gives soft labels, or one of mmsemi's does and
            the one that should learn them does not.
    """
    heads = ', '.join(
        f'{name}={type(module).__name__}'
        for name, module in model.named_modules() if name.endswith('_head'))
    if not soft_label_modules(model):
        raise ValueError(
            'soft_labels=True, but none of the heads of segmentor gives soft '
            f'labels: {heads}. Use mmsemi.SoftLabelRoIHead, or mmsemi.'
            'SoftLabelMask2FormerHead with mmsemi.QueryFusionHead.')
    modules = list(model.modules())
    for gives, learns, name in PARTNERS:
        if any(isinstance(m, gives) for m in modules) and not any(
                isinstance(m, learns) for m in modules):
            raise ValueError(
                'soft_labels=True, but the heads of segmentor would not '
                f'learn soft labels: {heads}. Use {name}.')
