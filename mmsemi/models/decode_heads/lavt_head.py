# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""LAVT's decoder."""
from typing import Optional, Sequence

import torch
from mmcv.cnn import ConvModule
from mmengine.model import ModuleList, Sequential
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor, nn

from mmsemi.registry import MODELS


@MODELS.register_module()
class LAVTHead(BaseDecodeHead):
    """From coarse to fine: upsample, concatenate, two convolutions, thrice.

    Each step resizes to the next finer map, puts that map's channels behind
    and passes two 3 x 3 convolutions with norm and ReLU; a 1 x 1 convolution
    gives the classes. The loss is a cross entropy with weights 0.9 of the
    background and 1.1 of what is referred to; its paper and those of SemiRES
    do not name the weights, the released code has them.

    Args:
        in_channels (Sequence[int]): Channels of the maps, fine to coarse.
            Defaults to those of Swin-B, (128, 256, 512, 1024).
        channels (int, optional): Hidden channels. Defaults to None: half of
            the coarsest map's.
        num_classes (int): Defaults to 2, background and referred.
        loss_reduction (str): What the weighted sum over pixels is divided
            by; see :class:`ClassWeightedCrossEntropyLoss`. LAVT and SemiRES's
            burn-in have 'weights', SemiRES's second stage 'pixels'. Defaults
            to 'weights'.
        loss_decode (dict or Sequence[dict], optional): Other losses; then
            ``loss_reduction`` must not be given. Defaults to None.
        norm_cfg (dict): Defaults to ``dict(type='SyncBN')``.
        align_corners (bool): How maps and logits are resized. Defaults to
            True, as released.
        dropout_ratio (float): Before the last convolution. Defaults to 0.
        **kwargs: Arguments of mmseg's BaseDecodeHead.

    Raises:
        ValueError: If there are fewer than two maps, or both losses are
            given.

    Source: Yang et al., LAVT, CVPR 2022, section 3.4.
    """

    def __init__(self,
                 in_channels: Sequence[int] = (128, 256, 512, 1024),
                 channels: Optional[int] = None,
                 num_classes: int = 2,
                 loss_reduction: Optional[str] = None,
                 loss_decode: Optional[dict] = None,
                 norm_cfg: dict = dict(type='SyncBN'),
                 align_corners: bool = True,
                 dropout_ratio: float = 0.,
                 **kwargs) -> None:
        in_channels = tuple(in_channels)
        if len(in_channels) < 2:
            raise ValueError(f'decode_head.in_channels={in_channels}; the '
                             'channels of two maps or more are needed.')
        if loss_decode is None:
            loss_decode = dict(
                type='mmsemi.ClassWeightedCrossEntropyLoss',
                class_weight=(0.9, 1.1),
                reduction=loss_reduction or 'weights')
        elif loss_reduction is not None:
            raise ValueError(
                f'decode_head.loss_reduction={loss_reduction!r} is of the '
                'default loss, but decode_head.loss_decode gives another; '
                'remove one of them.')
        channels = in_channels[-1] // 2 if channels is None else channels
        kwargs.setdefault('in_index', tuple(range(len(in_channels))))
        # mmseg recommends a sigmoid for two classes unless told so.
        kwargs.setdefault('out_channels', num_classes)
        kwargs.setdefault('init_cfg', None)
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            num_classes=num_classes,
            input_transform='multiple_select',
            loss_decode=loss_decode,
            norm_cfg=norm_cfg,
            align_corners=align_corners,
            dropout_ratio=dropout_ratio,
            **kwargs)
        coarser = in_channels[-1]
        steps = []
        for finer in in_channels[-2::-1]:
            steps.append(
                Sequential(*[
                    ConvModule(
                        num,
                        channels,
                        3,
                        padding=1,
                        conv_cfg=self.conv_cfg,
                        norm_cfg=self.norm_cfg,
                        act_cfg=self.act_cfg)
                    for num in (coarser + finer, channels)
                ]))
            coarser = channels
        self.steps = ModuleList(steps)

    def init_weights(self) -> None:
        """Initialise the convolutions as torch does, like the release."""
        super().init_weights()
        if self.init_cfg is not None:
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Decode.

        Args:
            inputs (Sequence[Tensor]): Maps (N, C_i, H_i, W_i).

        Returns:
            Tensor: Logits (N, num_classes, H_0, W_0).
        """
        maps = self._transform_inputs(inputs)
        x = maps[-1]
        for step, finer in zip(self.steps, maps[-2::-1]):
            x = resize(
                x,
                size=finer.shape[2:],
                mode='bilinear',
                align_corners=self.align_corners)
            x = step(torch.cat([x, finer], 1))
        return self.cls_seg(x)
