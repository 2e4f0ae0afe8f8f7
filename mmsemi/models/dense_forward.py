# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""An mmseg segmenter in parts: features, logits, losses.

mmseg's own ``encode_decode`` resizes to the unpadded size of the first image
when the samples carry no ground truth, and its ``loss`` takes whole images.
Semi-supervised methods need logits of the padded batch and share features
between losses.
"""
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmseg.models.utils import resize
from torch import Tensor, nn

Features = Union[Tensor, Sequence]


def check_dense_segmentor(model: nn.Module) -> None:
    """Refuse a model that gives no logits of every pixel.

    Args:
        model (nn.Module): A built segmenter.

    Raises:
        ValueError: If it is no ``EncoderDecoder`` of mmseg, predicts masks
            instead of pixels, or has a single output channel.
    """
    heads = _decode_heads(model)
    if not heads or not hasattr(model, 'extract_feat'):
        raise ValueError(
            f'segmentor of type {type(model).__name__} is no EncoderDecoder '
            'of mmseg: it has no extract_feat or no decode_head.')
    for head in heads:
        if not hasattr(head, 'cls_seg') or not hasattr(head, 'conv_seg'):
            raise ValueError(
                f'segmentor.decode_head of type {type(head).__name__} gives '
                'no logits of every pixel (it has no conv_seg), which '
                'pixel-wise pseudo-labels need.')
        if head.out_channels == 1:
            raise ValueError(
                'segmentor.decode_head.out_channels=1 gives one sigmoid; use '
                'out_channels=2 and a softmax over background and '
                'foreground.')


def num_classes(model: nn.Module) -> int:
    """Return the number of classes of a segmenter."""
    return _decode_heads(model)[-1].out_channels


def align_corners(model: nn.Module) -> bool:
    """Return how a segmenter resizes its logits."""
    return _decode_heads(model)[-1].align_corners


def reads_text(model: nn.Module) -> bool:
    """Tell whether a segmenter reads a sentence with every image."""
    return getattr(model, 'reads_text', False)


def check_reads_no_text(model: nn.Module, method: str) -> None:
    """Refuse a referring segmenter where sentences do not come along.

    Args:
        model (nn.Module): A built segmenter.
        method (str): What refuses it, for the message.

    Raises:
        ValueError: If the model reads sentences.
    """
    if reads_text(model):
        raise ValueError(
            f'{method} does not hand sentences on, which segmentor of type '
            f'{type(model).__name__} reads. Methods that do are '
            'mmsemi.FixMatch, mmsemi.UDA, mmsemi.MeanTeacher and '
            'mmsemi.SemiRES.')


def extract_features(model: nn.Module,
                     inputs: Tensor,
                     data_samples: Optional[list] = None) -> Features:
    """Extract features of images, and of their sentences if there are any.

    Args:
        model (nn.Module): mmseg's EncoderDecoder.
        inputs (Tensor): Preprocessed images (N, 3, H, W).
        data_samples (list[SegDataSample], optional): N samples with
            ``text``, one sentence each. Needed by referring segmenters,
            which read nothing else of them; others do not look at them.
            Defaults to None.

    Returns:
        Features: What ``model.extract_feat`` gives.

    Raises:
        ValueError: If a referring segmenter gets no sentence, or several for
            an image.
    """
    if not reads_text(model):
        return model.extract_feat(inputs)
    return model.extract_feat(inputs, model.single_texts(data_samples))


def _decode_heads(model: nn.Module) -> List[nn.Module]:
    head = getattr(model, 'decode_head', None)
    if head is None:
        return []
    return list(head) if isinstance(head, nn.ModuleList) else [head]


def decode(model: nn.Module, features: Features) -> Tensor:
    """Turn features into logits, at the size that the decoder gives.

    Args:
        model (nn.Module): mmseg's EncoderDecoder, also a cascade.
        features (Features): From ``model.extract_feat``.

    Returns:
        Tensor: Logits (N, C, h, w).

    Raises:
        TypeError: If the decoder gives something else, as some of mmseg's do
            in training.
    """
    heads = _decode_heads(model)
    logits = heads[0](features)
    for head in heads[1:]:
        logits = head(features, logits)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f'segmentor.decode_head of type {type(heads[-1]).__name__} gives '
            f'a {type(logits).__name__} instead of logits of every pixel in '
            f'{"training" if model.training else "evaluation"} mode; use '
            'another decode head.')
    return logits


def resize_logits(model: nn.Module, logits: Tensor,
                  size: Tuple[int, int]) -> Tensor:
    """Resize logits (N, C, h, w) to (N, C, *size), as the model does."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return resize(
        logits,
        size=tuple(size),
        mode='bilinear',
        align_corners=align_corners(model))


def dense_logits(model: nn.Module,
                 inputs: Tensor,
                 data_samples: Optional[list] = None) -> Tensor:
    """Return the logits of every pixel.

    Args:
        model (nn.Module): mmseg's EncoderDecoder.
        inputs (Tensor): Preprocessed images (N, 3, H, W), padded.
        data_samples (list[SegDataSample], optional): See
            :func:`extract_features`. Defaults to None.

    Returns:
        Tensor: Logits (N, C, H, W).
    """
    features = extract_features(model, inputs, data_samples)
    return resize_logits(model, decode(model, features), inputs.shape[2:])


def loss_from_features(model: nn.Module, features: Features,
                       data_samples: list) -> Dict[str, Tensor]:
    """Compute the model's supervised losses from features.

    The same as ``model.loss``, after its ``extract_feat``.

    Args:
        model (nn.Module): mmseg's EncoderDecoder.
        features (Features): Of the labelled images.
        data_samples (list[SegDataSample]): With ground truth.

    Returns:
        dict[str, Tensor]: Losses of decode head and auxiliary heads.
    """
    losses = model._decode_head_forward_train(features, data_samples)
    if model.with_auxiliary_head:
        losses.update(
            model._auxiliary_head_forward_train(features, data_samples))
    return losses


def map_features(features: Features, function) -> Features:
    """Apply a function to every tensor in nested features."""
    if isinstance(features, Tensor):
        return function(features)
    return type(features)(map_features(part, function) for part in features)


def split_features(features: Features, num: int) -> Tuple[Features, Features]:
    """Split features of a batch into those of the first images and the rest.

    Args:
        features (Features): Tensors (N, ...), nested in lists or tuples.
        num (int): Number of images in the first part.

    Returns:
        tuple: Both parts, nested as the input.
    """
    return (map_features(features, lambda x: x[:num]),
            map_features(features, lambda x: x[num:]))


def cat_features(first: Features, second: Features) -> Features:
    """Put the features of two batches together.

    Args:
        first (Features): Tensors (N, ...), nested in lists or tuples.
        second (Features): Tensors (M, ...), nested in the same way.

    Returns:
        Features: Tensors (N + M, ...).
    """
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    return type(first)(cat_features(a, b) for a, b in zip(first, second))
