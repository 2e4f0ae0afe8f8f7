# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""FastInst's pixel decoder: a feature pyramid under pyramid pooling."""
from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList, caffe2_xavier_init
from torch import Tensor

from mmsemi.registry import MODELS


@MODELS.register_module()
class FastInstPixelDecoder(BaseModule):
    """A light feature pyramid, PPM-FPN, with pyramid pooling on top.

    Three things differ from mmdet's ``FPN`` and ``PixelDecoder``: maps are
    enlarged bilinearly, a level passes on what left its 3x3 convolution, and
    no map is kept for masks alone; queries and masks share the finest one.

    J. He et al., FastInst: A Simple Query-Based Model for Real-Time Instance
    Segmentation, CVPR 2023 (arXiv 2303.08594); details as in its official
    code.

    Args:
        in_channels (Sequence[int]): Channels of the backbone's maps, finest
            first. Defaults to (512, 1024, 2048), strides 8, 16 and 32.
        feat_channels (int): Channels of the outputs, a multiple of the
            number of pool scales. Defaults to 256.
        pool_scales (Sequence[int]): Sides of the pooled maps, in cells.
            Defaults to (1, 2, 3, 6).
        norm_cfg (dict, optional): Of the pyramid's convolutions; pooled
            maps have no norm. Defaults to None: group norm of 32 groups.

    Raises:
        ValueError: If there are fewer than two maps, or ``feat_channels``
            cannot be shared among the pool scales.
    """

    def __init__(self,
                 in_channels: Sequence[int] = (512, 1024, 2048),
                 feat_channels: int = 256,
                 pool_scales: Sequence[int] = (1, 2, 3, 6),
                 norm_cfg: Optional[dict] = None) -> None:
        super().__init__()
        if len(in_channels) < 2:
            raise ValueError(
                f'pixel_decoder.in_channels={tuple(in_channels)}; FastInst '
                'needs at least two maps: masks are on the finest, queries '
                'on the next.')
        if not pool_scales or feat_channels % len(pool_scales):
            raise ValueError(
                f'pixel_decoder.feat_channels={feat_channels} is no multiple '
                'of the number of pixel_decoder.pool_scales='
                f'{tuple(pool_scales)}.')
        if norm_cfg is None:
            norm_cfg = dict(type='GN', num_groups=32)
        self.pool_scales = tuple(pool_scales)
        self.lateral_convs = ModuleList(
            ConvModule(
                channels, feat_channels, 1, norm_cfg=norm_cfg, act_cfg=None)
            for channels in in_channels)
        self.output_convs = ModuleList(
            ConvModule(
                feat_channels, feat_channels, 3, padding=1, norm_cfg=norm_cfg)
            for _ in in_channels)
        self.ppm_convs = ModuleList(
            ConvModule(feat_channels, feat_channels // len(pool_scales), 1)
            for _ in pool_scales)
        self.ppm_bottleneck = ConvModule(2 * feat_channels, feat_channels, 1)

    def init_weights(self) -> None:
        """Draw the weights as the official code does."""
        for module in (*self.lateral_convs, *self.output_convs):
            caffe2_xavier_init(module.conv)
        # ConvModule has already put its own in place of torch's.
        for module in (*self.ppm_convs, self.ppm_bottleneck):
            module.conv.reset_parameters()

    def forward(self, feats: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Decode the backbone's maps.

        Args:
            feats (Sequence[Tensor]): Of each level (N, C, h, w), finest
                first.

        Returns:
            tuple[Tensor]: Of each level (N, ``feat_channels``, h, w),
            coarsest first.

        Raises:
            ValueError: If the number of maps is another than that of
                ``in_channels``.
        """
        if len(feats) != len(self.lateral_convs):
            raise ValueError(
                f'The backbone gives {len(feats)} maps, and panoptic_head.'
                f'in_channels names {len(self.lateral_convs)}; set '
                'backbone.out_indices so that they agree.')
        outputs = []
        for feat, lateral, output in zip(
                reversed(feats), reversed(self.lateral_convs),
                reversed(self.output_convs)):
            y = lateral(feat)
            y = y + _resize(outputs[-1], y) if outputs else self._pool(y)
            outputs.append(output(y))
        return tuple(outputs)

    def _pool(self, x: Tensor) -> Tensor:
        pooled = [
            _resize(conv(F.adaptive_avg_pool2d(x, scale)), x)
            for scale, conv in zip(self.pool_scales, self.ppm_convs)
        ]
        return self.ppm_bottleneck(torch.cat([*pooled, x], dim=1))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(
        x, like.shape[-2:], mode='bilinear', align_corners=False)
