# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Names, shapes and reference values of the official FastInst weights."""
import math
from typing import Dict, Tuple

import torch
from torch import Tensor

Shapes = Dict[str, Tuple[int, ...]]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STATISTICS = ('weight', 'bias', 'running_mean', 'running_var')


def _norm(name: str, width: int) -> Shapes:
    return {f'{name}.weight': (width, ), f'{name}.bias': (width, )}


def _linear(name: str, outputs: int, inputs: int, *kernel: int) -> Shapes:
    return {
        f'{name}.weight': (outputs, inputs, *kernel),
        f'{name}.bias': (outputs, )
    }


def _attention(name: str, width: int) -> Shapes:
    return {
        f'{name}.in_proj_weight': (3 * width, width),
        f'{name}.in_proj_bias': (3 * width, ),
        **_linear(f'{name}.out_proj', width, width)
    }


def head_shapes(num_layers: int,
                num_classes: int = 80,
                in_channels: Tuple[int, ...] = (512, 1024, 2048),
                width: int = 256,
                side: int = 10,
                aux: int = 8,
                hidden: int = 1024) -> Shapes:
    """Return the head's weights, named from ``sem_seg_head`` on."""
    shapes = {}
    for n, channels in enumerate(in_channels, 1):
        for name, size in ((f'adapter_{n}', (width, channels, 1, 1)),
                           (f'layer_{n}', (width, width, 3, 3))):
            shapes[f'pixel_decoder.{name}.weight'] = size
            shapes.update(_norm(f'pixel_decoder.{name}.norm', width))
    for j in range(4):
        shapes.update(
            _linear(f'pixel_decoder.ppm.stages.{j}.1', width // 4, width, 1,
                    1))
    shapes.update(
        _linear('pixel_decoder.ppm.bottleneck', width, 2 * width, 1, 1))
    d = 'predictor'
    shapes[f'{d}.meta_pos_embed'] = (1, width, side, side)
    shapes[f'{d}.empty_query_features.weight'] = (aux, width)
    shapes[f'{d}.empty_query_pos_embed.weight'] = (aux, width)
    proposal = f'{d}.query_proposal.conv_proposal_cls_logits'
    shapes.update(_linear(f'{proposal}.0', width, width, 3, 3))
    shapes.update(_linear(f'{proposal}.2', num_classes + 1, width, 1, 1))
    for i in range(num_layers):
        for kind, attention in (('query_cross_attention', 'multihead_attn'),
                                ('query_self_attention', 'self_attn'),
                                ('mask_cross_attention', 'multihead_attn')):
            name = f'{d}.transformer_{kind}_layers.{i}'
            shapes.update(_attention(f'{name}.{attention}', width))
            shapes.update(_norm(f'{name}.norm', width))
        for kind in ('query_ffn', 'mask_ffn'):
            name = f'{d}.transformer_{kind}_layers.{i}'
            shapes.update(_linear(f'{name}.linear1', hidden, width))
            shapes.update(_linear(f'{name}.linear2', width, hidden))
            shapes.update(_norm(f'{name}.norm', width))
    for j in range(num_layers + 1):
        shapes.update(_norm(f'{d}.decoder_query_norm_layers.{j}', width))
        shapes.update(_linear(f'{d}.mask_features_layers.{j}', width, width))
        for kind, last in (('class', num_classes + 1), ('mask', width)):
            for k, outputs in enumerate((width, width, last)):
                shapes.update(
                    _linear(f'{d}.{kind}_embed_layers.{j}.layers.{k}', outputs,
                            width))
    return shapes


def resnet_shapes(depth: int = 50, width: int = 64) -> Shapes:
    """Return detectron2's ResNet."""
    shapes = {}

    def conv(name: str, norm: str, *size: int) -> None:
        shapes[f'{name}.weight'] = size
        shapes.update((f'{norm}.{key}', (size[0], )) for key in STATISTICS)

    conv('backbone.stem.conv1', 'backbone.stem.conv1.norm', width, 3, 7, 7)
    inputs = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        inner = width * 2**stage
        for b in range(blocks):
            name = f'backbone.res{stage + 2}.{b}'
            if b == 0:
                conv(f'{name}.shortcut', f'{name}.shortcut.norm', 4 * inner,
                     inputs, 1, 1)
            for n, (outputs, channels,
                    kernel) in enumerate(((inner, inputs, 1),
                                          (inner, inner, 3), (4 * inner,
                                                              inner, 1)), 1):
                conv(f'{name}.conv{n}', f'{name}.conv{n}.norm', outputs,
                     channels, kernel, kernel)
            inputs = 4 * inner
    return shapes


def resnet_d_shapes(deformable: bool, width: int = 64) -> Shapes:
    """Return timm's ResNet-50-D, from ``backbone`` on."""
    shapes = {}

    def conv(name: str, norm: str, *size: int) -> None:
        shapes[f'backbone.{name}.weight'] = size
        for key in STATISTICS:
            shapes[f'backbone.{norm}.{key}'] = (size[0], )
        shapes[f'backbone.{norm}.num_batches_tracked'] = ()

    half = width // 2
    conv('conv1.0', 'conv1.1', half, 3, 3, 3)
    conv('conv1.3', 'conv1.4', half, half, 3, 3)
    conv('conv1.6', 'bn1', width, half, 3, 3)
    inputs = width
    for stage, blocks in enumerate(BLOCKS[50], 1):
        inner = width * 2**(stage - 1)
        for b in range(blocks):
            name = f'layer{stage}.{b}'
            conv(f'{name}.conv1', f'{name}.bn1', inner, inputs, 1, 1)
            conv(f'{name}.conv2', f'{name}.bn2', inner, inner, 3, 3)
            conv(f'{name}.conv3', f'{name}.bn3', 4 * inner, inner, 1, 1)
            if deformable and stage > 2:
                shapes.update(
                    _linear(f'backbone.{name}.conv2_offset', 18, inner, 3, 3))
            if b == 0:
                conv(f'{name}.downsample.1', f'{name}.downsample.2', 4 * inner,
                     inputs, 1, 1)
            inputs = 4 * inner
    return shapes


def official_shapes(num_layers: int,
                    num_classes: int = 80,
                    backbone: Shapes = None,
                    **head) -> Shapes:
    """Return all weights of a checkpoint."""
    head = head_shapes(num_layers, num_classes, **head)
    return {
        **(resnet_shapes() if backbone is None else backbone),
        **{f'sem_seg_head.{key}': size
           for key, size in head.items()}, 'criterion.empty_weight':
        (num_classes + 1, ),
        'sem_seg_head.predictor.criterion.empty_weight': (num_classes + 1, )
    }


def reference_weight(key: str, shape: Tuple[int, ...]) -> Tensor:
    """Return the weight of the reference run, float64.

    Args:
        key (str): Name from ``sem_seg_head`` on.
        shape (tuple[int, ...]): Its shape.
    """
    place = sum(map(ord, key)) % 97
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    u = (0.37 * k + 0.11 * place).cos().reshape(shape)
    if 'empty_query' in key or 'meta_pos' in key:
        return u
    if len(shape) > 1:
        return 1.5 * u / math.prod(shape[1:])**0.5
    is_norm = 'norm' in key.split('.')[-2] or 'norm_layers' in key
    if is_norm and key.endswith('weight'):
        return 1 + 0.1 * u
    return 0.1 * u


def reference_maps() -> Tuple[Tensor, ...]:
    """Return the backbone's maps of the reference run, float64."""
    maps = []
    for channels, height, width, phase in ((16, 16, 20, .1), (24, 8, 10, .2),
                                           (32, 4, 5, .3)):
        shape = (2, channels, height, width)
        k = torch.arange(math.prod(shape), dtype=torch.float64)
        values = (0.713 * k + phase).sin() + 0.3 * (0.0171 * k * (k % 7)).cos()
        maps.append(values.reshape(shape))
    return tuple(maps)
