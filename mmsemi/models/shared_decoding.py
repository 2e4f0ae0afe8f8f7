# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Supervised losses and logits of every pixel out of one pass."""
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Tuple

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.utils import add_prefix
from torch import Tensor, nn

from .dense_forward import (Features, decode, extract_features,
                            loss_from_features, split_features)


def decode_with_losses(
        model: nn.Module, features: Features,
        data_samples: list) -> Tuple[Tensor, Dict[str, Tensor]]:
    """Decode features of labelled and unlabelled images once.

    Args:
        model (nn.Module): mmseg's EncoderDecoder.
        features (Features): Of N images, the labelled ones first.
        data_samples (list[SegDataSample]): M <= N samples with ground truth,
            or none.

    Returns:
        tuple[Tensor, dict]: Logits (N, C, h, w) at the decoder's size, and
        the losses of ``model.loss`` on the M labelled images.
    """
    logits = decode(model, features)
    num = len(data_samples)
    if num == 0:
        return logits, {}
    labeled, _ = split_features(features, num)
    head = model.decode_head
    # Cascades and heads with a loss of their own decode a second time.
    if getattr(type(head), 'loss', None) is not BaseDecodeHead.loss:
        return logits, loss_from_features(model, labeled, data_samples)
    losses = add_prefix(
        head.loss_by_feat(logits[:num], data_samples), 'decode')
    if model.with_auxiliary_head:
        losses.update(
            model._auxiliary_head_forward_train(labeled, data_samples))
    return logits, losses


def extract_together(
        model: nn.Module,
        parts: List[Tensor],
        data_samples: Optional[List[list]] = None) -> List[Features]:
    """Extract the features of batches, in one pass where sizes allow it.

    Args:
        model (nn.Module): mmseg's EncoderDecoder.
        parts (list[Tensor]): Images (N_i, 3, H_i, W_i).
        data_samples (list[list[SegDataSample]], optional): N_i samples of
            each part; see :func:`extract_features`. Defaults to None.

    Returns:
        list[Features]: One for all parts together if their sizes are equal,
        else one per part.
    """
    samples = [None] * len(parts) if data_samples is None else data_samples
    if len({part.shape[1:] for part in parts}) == 1:
        together = None if data_samples is None else sum(samples, [])
        return [extract_features(model, torch.cat(parts), together)]
    return [
        extract_features(model, part, own)
        for part, own in zip(parts, samples)
    ]


@contextmanager
def tapped_classifier(model: nn.Module) -> Iterator[List[Tensor]]:
    """Note what the decode head's classifier gets, before its dropout.

    Args:
        model (nn.Module): mmseg's EncoderDecoder.

    Yields:
        list[Tensor]: Receives (N, channels, h, w) per pass.
    """
    head = model.decode_head
    if isinstance(head, nn.ModuleList):
        head = head[-1]
    noted: List[Tensor] = []
    module = head.conv_seg if head.dropout is None else head.dropout
    handle = module.register_forward_pre_hook(
        lambda _, inputs: noted.append(inputs[0]))
    try:
        yield noted
    finally:
        handle.remove()
