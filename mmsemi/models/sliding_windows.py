# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Prediction on overlapping windows of an image."""
from collections.abc import Sequence
from typing import Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

#: What happens to the windows that would pass the image's border.
BORDERS = ('shift', 'truncate')
#: What is averaged where windows overlap.
AVERAGES = ('logits', 'softmax')

Size = Union[int, Sequence[int]]


def sliding_windows(height: int,
                    width: int,
                    size: Size,
                    stride: Size,
                    border: str = 'shift') -> List[Tuple[int, int, int, int]]:
    """List the windows that cover an image, row by row.

    Args:
        height (int): Height of the image in pixels.
        width (int): Width of the image in pixels.
        size (int or Sequence[int]): Size of a window in pixels, or height
            and width. Windows are never larger than the image.
        stride (int or Sequence[int]): Distance of two windows in pixels, or
            vertical and horizontal distance; at most ``size``.
        border (str): 'shift' moves the last window of a row or column back
            to the border, as mmseg and UniMatch V2 do. 'truncate' starts a
            window at every multiple of the stride and cuts it off at the
            border, as UniMatch V1 does; also where the windows before
            already reach the border. Defaults to 'shift'.

    Returns:
        list[tuple[int, int, int, int]]: Top, left, height and width of each.

    Raises:
        ValueError: If an argument is out of range.
    """
    if height < 1 or width < 1:
        raise ValueError(f'The image is {height} x {width} pixels; both must '
                         'be above 0.')
    if border not in BORDERS:
        raise ValueError(f"test_cfg.border={border!r}; allowed are 'shift' "
                         "and 'truncate'.")
    sizes = as_pair(size, 'crop_size')
    strides = as_pair(stride, 'stride')
    if any(step > side for step, side in zip(strides, sizes)):
        raise ValueError(
            f'test_cfg.stride={stride} is larger than test_cfg.crop_size='
            f'{size}: pixels between the windows would be left out.')
    rows, columns = (
        _spans(*args, border)
        for args in zip((height, width), sizes, strides))
    return [(top, left, high, wide) for top, high in rows
            for left, wide in columns]


def as_pair(value: Size, field: str) -> Tuple[int, int]:
    """Return height and width.

    Args:
        value (int or Sequence[int]): One number for both, or two.
        field (str): Field of ``test_cfg``, for the message.

    Returns:
        tuple[int, int]: Two numbers above 0.

    Raises:
        ValueError: If it is neither.
    """
    pair = tuple(value) if isinstance(value, Sequence) else (value, ) * 2
    if len(pair) != 2 or not all(
            isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f'test_cfg.{field}={value}; allowed are an integer '
                         'above 0 or two, height and width.')
    return pair


def _spans(length: int, size: int, stride: int,
           border: str) -> List[Tuple[int, int]]:
    """Return start and length of the windows along one side."""
    if border == 'truncate':
        starts = range(0, length, stride)
    else:
        last = max(length - size, 0)
        starts = [*range(0, last, stride), last]
    return [(start, min(size, length - start)) for start in starts]


def slide_logits(model: nn.Module,
                 inputs: Tensor,
                 size: Size,
                 stride: Size,
                 border: str = 'shift',
                 average: str = 'logits',
                 metas: Optional[Sequence[dict]] = None) -> Tensor:
    """Predict on windows and average where they overlap.

    With 'shift' and 'logits' the result equals that of mmseg's
    ``slide_inference``. The released UniMatch V1 uses 'truncate' and
    'softmax', V2 'shift' and 'softmax'.

    Args:
        model (nn.Module): mmseg's EncoderDecoder, or any with its
            ``encode_decode``.
        inputs (Tensor): Preprocessed images (N, C, H, W).
        size (int or Sequence[int]): See :func:`sliding_windows`.
        stride (int or Sequence[int]): See :func:`sliding_windows`.
        border (str): See :func:`sliding_windows`. Defaults to 'shift'.
        average (str): 'logits' or 'softmax'; with one output channel the
            latter means the sigmoid. Defaults to 'logits'.
        metas (Sequence[dict], optional): Metainfo of the N images; it is
            left as it is, while mmseg's overwrites ``img_shape`` of the
            first. Defaults to None: nothing but the size.

    Returns:
        Tensor: Logits (N, K, H, W), or probabilities with 'softmax'.

    Raises:
        ValueError: If an argument is out of range.
    """
    if average not in AVERAGES:
        raise ValueError(f"test_cfg.average={average!r}; allowed are 'logits' "
                         "and 'softmax'.")
    height, width = inputs.shape[2:]
    windows = sliding_windows(height, width, size, stride, border)
    total, times = None, inputs.new_zeros((1, 1, height, width))
    for top, left, high, wide in windows:
        place = (..., slice(top, top + high), slice(left, left + wide))
        crop = inputs[place]
        scores = model.encode_decode(
            crop, window_metas(metas, len(crop), crop.shape[2:]))
        if average == 'softmax':
            scores = probabilities(scores)
        if total is None:
            total = inputs.new_zeros(
                (len(inputs), scores.shape[1], height, width))
        total[place] += scores
        times[place] += 1
    return total / times


def window_metas(metas: Optional[Sequence[dict]], num: int,
                 shape: torch.Size) -> List[Dict]:
    """Return metainfo that makes an mmseg head resize to a window.

    Args:
        metas (Sequence[dict], optional): Metainfo of the images. None: only
            the size is told.
        num (int): Number of images.
        shape (torch.Size): Height and width of the window. Heads know a
            window by the type.

    Returns:
        list[dict]: New dicts.
    """
    shape = torch.Size(shape)
    if metas is None:
        metas = [dict(ori_shape=shape, padding_size=[0] * 4)] * num
    return [{**meta, 'img_shape': shape, 'pad_shape': shape} for meta in metas]


def probabilities(logits: Tensor) -> Tensor:
    """Turn logits (N, K, H, W) into probabilities.

    Args:
        logits (Tensor): Logits.

    Returns:
        Tensor: Softmax over the channels; of a single one the sigmoid.
    """
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
