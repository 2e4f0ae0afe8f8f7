# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""mmseg's DPT head for backbones that return plain maps."""
from typing import List, Optional, Sequence

from mmseg.models.decode_heads import DPTHead as MMSegDPTHead
from torch import Tensor, nn

from mmsemi.registry import MODELS


@MODELS.register_module()
class DPTHead(MMSegDPTHead):
    """Dense prediction transformer head over four maps of one size.

    mmseg's head wants a class token beside each map; this one takes the maps
    of :class:`mmsemi.models.DINOBackbone`, and leaves class tokens out
    ('ignore' of the paper). Unlike DPT's and UniMatch V2's own code, where
    sizes do not fit (37 patches make 19 after stride 2), the finer map is
    resized to the coarser, doubled one, and residual units have no bias.

    Args:
        in_channels (Sequence[int]): Channels of the four maps, all the same.
        channels (int): Channels of the fused maps. UniMatch V2 takes 64, 128
            and 256 for the sizes S, B and L.
        post_process_channels (Sequence[int]): Channels of the four maps
            after the first projection. UniMatch V2 takes (48, 96, 192, 384),
            (96, 192, 384, 768) and (256, 512, 1024, 1024).
        norm_cfg (dict, optional): Norm layers of the residual units. Defaults
            to None: none, as in UniMatch V2.
        **kwargs: Arguments of mmseg's DPTHead, such as ``num_classes``.

    Raises:
        ValueError: If there are not four maps of the same channels.

    Source: Ranftl et al., Vision Transformers for Dense Prediction, 2021.
    """

    def __init__(self,
                 in_channels: Sequence[int],
                 channels: int,
                 post_process_channels: Sequence[int],
                 norm_cfg: Optional[dict] = None,
                 **kwargs) -> None:
        if len(set(in_channels)) != 1 or not (
                4 == len(in_channels) == len(post_process_channels)):
            raise ValueError(
                'mmsemi.DPTHead fuses four maps of the same channels; got '
                f'decode_head.in_channels={tuple(in_channels)} and '
                f'post_process_channels={tuple(post_process_channels)}.')
        super().__init__(
            in_channels=in_channels,
            channels=channels,
            in_index=(0, 1, 2, 3),
            input_transform='multiple_select',
            embed_dims=in_channels[0],
            post_process_channels=list(post_process_channels),
            readout_type='ignore',
            norm_cfg=norm_cfg,
            **kwargs)

    def init_weights(self) -> None:
        """Initialise the convolutions as torch does.

        mmcv's own initialisation is for convolutions with norm layers;
        without them features grow from block to block.
        """
        super().init_weights()
        if self.norm_cfg is not None:
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.conv_seg:
                module.reset_parameters()

    def _transform_inputs(self, inputs: Sequence[Tensor]) -> List[list]:
        """Pair the maps with nothing; mmseg unpacks a token and ignores it."""
        return [[map_, None] for map_ in super()._transform_inputs(inputs)]
