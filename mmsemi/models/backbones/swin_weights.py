# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Weights of plain Swin transformers, in both layouts."""
import re
from pathlib import Path
from typing import Dict, Mapping, Optional

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

Weights = Dict[str, Tensor]

TABLE = 'relative_position_bias_table'
#: What follows from the window alone; published files need not have it.
INDEX = 'relative_position_index'

#: Patterns of official names, and what they become in OpenMMLab's Swin.
_RULES = (
    (r'patch_embed\.proj\.(.+)', r'patch_embed.projection.\1'),
    (r'layers\.(\d+)\.(blocks\.\d+)\.attn\.(.+)',
     r'stages.\1.\2.attn.w_msa.\3'),
    (r'layers\.(\d+)\.(blocks\.\d+)\.mlp\.fc1\.(.+)',
     r'stages.\1.\2.ffn.layers.0.0.\3'),
    (r'layers\.(\d+)\.(blocks\.\d+)\.mlp\.fc2\.(.+)',
     r'stages.\1.\2.ffn.layers.1.\3'),
    (r'layers\.(\d+)\.((?:blocks\.\d+\.norm[12]|downsample)\..+)',
     r'stages.\1.\2'),
    (r'(patch_embed\.norm\..+|norm[0-3]\..+|absolute_pos_embed)', r'\1'),
)


def convert_swin_key(key: str) -> Optional[str]:
    """Return OpenMMLab's name of a weight of the official Swin.

    Args:
        key (str): Its official name.

    Returns:
        str or None: None if it has none, as the classifier.
    """
    for pattern, ours in _RULES:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(ours)
    return None


def reorder_patch_merging(weight: Tensor) -> Tensor:
    """Give the columns of a patch merging OpenMMLab's order.

    The official layer concatenates the four pixels of a patch as (0, 0),
    (1, 0), (0, 1), (1, 1), all channels of one after those of the other;
    OpenMMLab's unfolds, so that the four values of a channel, row by row,
    stand side by side.

    Args:
        weight (Tensor): (2C, 4C) of ``reduction``, or (4C,) of its norm.

    Returns:
        Tensor: Of the same shape.
    """
    pixels = weight.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
    return pixels.transpose(-1, -2).flatten(-2)


def convert_swin_weights(official: Mapping[str, Tensor]) -> Weights:
    """Turn weights of the official Swin into OpenMMLab's.

    Args:
        official (Mapping[str, Tensor]): Weights by official name.

    Returns:
        dict[str, Tensor]: Without those that have no place, such as the
        classifier.
    """
    converted = {}
    for key, weight in official.items():
        ours = convert_swin_key(key)
        if ours is not None:
            merges = '.downsample.' in key
            converted[ours] = reorder_patch_merging(
                weight) if merges else weight
    return converted


def load_swin_weights(model: nn.Module,
                      path: str,
                      official: bool = False) -> None:
    """Load a plain Swin into one with more to it.

    Args:
        model (nn.Module): OpenMMLab's SwinTransformer or a subclass. Its
            norms of outputs may be missing in the file: classifiers have
            none.
        path (str): Local file, read without running code from it, or URL,
            as mmengine takes it.
        official (bool): Whether the file has the official layout. Defaults
            to False.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a weight of Swin is missing or of another shape, or
            the file holds more than data.
    """
    loaded = _read(path)
    for name in ('state_dict', 'model'):
        loaded = loaded.get(name, loaded)
    weights = {
        re.sub(r'^(module\.)?(backbone\.)?', '', key): value
        for key, value in loaded.items()
    }
    if official:
        weights = convert_swin_weights(weights)
    expected = {
        key: value
        for key, value in model.state_dict().items()
        if key.startswith(('patch_embed.', 'stages.', 'absolute_pos_embed'))
    }
    for key, table in expected.items():
        if key.endswith(TABLE) and key in weights:
            weights[key] = resize_position_table(weights[key], table.shape[0])
    wrong = [
        key for key, value in expected.items() if not key.endswith(INDEX) and
        (key not in weights or weights[key].shape != value.shape)
    ]
    if wrong:
        layout = 'official' if official else "OpenMMLab's"
        raise ValueError(
            f'backbone.init_cfg.checkpoint={path} is no Swin of this size in '
            f'the {layout} layout: {len(wrong)} of {len(expected)} weights '
            f'are missing or of another shape, such as {wrong[:3]}. '
            'backbone.convert_weights says which layout the file has.')
    norms = [
        key for key, value in model.state_dict().items()
        if re.fullmatch(r'norm\d\..+', key) and key in weights
        and weights[key].shape == value.shape
    ]
    kept = {
        key: weights[key]
        for key in (*expected, *norms) if not key.endswith(INDEX)
    }
    model.load_state_dict(kept, strict=False)
    print_log(f'Loaded {len(kept)} weights of Swin from {path}.', 'current')


def _read(path: str) -> dict:
    if '://' in path:
        return CheckpointLoader.load_checkpoint(path, map_location='cpu')
    file, field = Path(path).expanduser(), 'backbone.init_cfg.checkpoint'
    if not file.is_file():
        raise FileNotFoundError(f'{field}={path} does not exist.')
    try:
        loaded = torch.load(file, map_location='cpu', weights_only=True)
    # Bytes that are no checkpoint can make it fail in any way.
    except Exception as error:
        raise ValueError(
            f'{field}={path} is damaged or holds more than weights '
            f'({type(error).__name__}).') from error
    if not isinstance(loaded, dict):
        raise ValueError(f'{field}={path} holds no weights by name.')
    return loaded


def resize_position_table(table: Tensor, length: int) -> Tensor:
    """Resize the position biases of one window to another.

    Args:
        table (Tensor): ((2v - 1)^2, heads) for a window of v.
        length (int): (2w - 1)^2 for a window of w.

    Returns:
        Tensor: (length, heads), bicubically resized.
    """
    if len(table) == length:
        return table
    old, new = (round(num**.5) for num in (len(table), length))
    grid = table.T.reshape(1, -1, old, old).float()
    grid = F.interpolate(grid, (new, new), mode='bicubic')
    return grid.reshape(-1, length).T.contiguous().to(table)
