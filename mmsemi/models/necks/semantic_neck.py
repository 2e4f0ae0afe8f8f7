# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Feature maps that know what the classes are called, for any detector."""
from typing import Any, Optional, Sequence, Tuple, Union

from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from mmsemi.models.semantic_branch import SemanticBranch, TextSource
from mmsemi.registry import MODELS


@MODELS.register_module()
class SemanticNeck(BaseModule):
    """Let every pixel of a neck's maps attend to the names of the classes.

    Each map x becomes x + g a T: see the mode 'feature' of
    :class:`SemanticBranch`. With a gate g of 0 the maps are the neck's. It
    fits detectors whose heads have no last linear layer to fuse with
    (SOLOv2, RTMDet-Ins, CondInst ...): it needs nothing but maps. SemInst
    (arXiv 2410.16063) has no such form; it is ours. There is no auxiliary
    loss, because a map has no classes to learn.

    The neck's own weights keep their names for loading: a checkpoint of the
    detector without this wrapper loads into it.

    Args:
        neck (dict, optional): The neck; None for the backbone's own maps.
        text_embeddings (str, Path, dict, TextEmbeddings or None): See
            :class:`SemanticBranch`.
        num_classes (int): Number of classes C without background.
        channels (int or Sequence[int], optional): Channels of all maps, or
            of each. Maps of equal channels share their weights. Defaults to
            None: the neck's ``out_channels``.
        gate (float): g before training. Defaults to 0.1.
        learn_gate (bool): Whether g is learned. Defaults to True.
        center (bool): See :class:`SemanticBranch`. Defaults to True.
        embed_channels (int, optional): See :class:`SemanticBranch`.
        text_channels (int, optional): See :class:`SemanticBranch`.
        init_cfg (dict or list[dict], optional): Initialisation.

    Raises:
        ValueError: If the channels are not known, or see
            :class:`SemanticBranch`.
    """

    def __init__(self,
                 neck: Optional[dict],
                 text_embeddings: Optional[TextSource],
                 num_classes: int,
                 channels: Optional[Union[int, Sequence[int]]] = None,
                 gate: float = 0.1,
                 learn_gate: bool = True,
                 center: bool = True,
                 embed_channels: Optional[int] = None,
                 text_channels: Optional[int] = None,
                 init_cfg: Optional[Union[dict, list]] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.wrapped = None if neck is None else MODELS.build(neck)
        if channels is None:
            channels = getattr(self.wrapped, 'out_channels', None)
        if isinstance(channels, (list, tuple)):
            self.channels: Union[int, Tuple[int, ...]] = tuple(channels)
            distinct = sorted(set(channels))
        elif isinstance(channels, int):
            self.channels = channels
            distinct = [channels]
        else:
            raise ValueError(
                f'SemanticNeck.channels={channels!r}: '
                f'{type(self.wrapped).__name__} does not say how many '
                'channels its maps have. Give a number for all maps, or a '
                'list with one per map.')
        self.num_classes = num_classes
        self.widths = distinct
        self.branches = ModuleList([
            SemanticBranch(
                text_embeddings,
                num_classes,
                width,
                mode='feature',
                center=center,
                gate=gate,
                learn_gate=learn_gate,
                background=False,
                aux_weight=0,
                embed_channels=embed_channels,
                text_channels=text_channels) for width in distinct
        ])

    def forward(self, inputs: Sequence[Tensor],
                *args: Any) -> Tuple[Tensor, ...]:
        """Return conditioned maps.

        Args:
            inputs (Sequence[Tensor]): The backbone's maps.
            *args: Handed on to the neck.

        Returns:
            tuple[Tensor]: As many as the neck gives, each (N, d, H, W).

        Raises:
            ValueError: If a map has other channels than were said.
        """
        maps = inputs
        if self.wrapped is not None:
            maps = self.wrapped(inputs, *args)
        if isinstance(maps, Tensor):
            return self._branch(0, maps, 1).condition_maps(maps)
        return tuple(
            self._branch(i, map_, len(maps)).condition_maps(map_)
            for i, map_ in enumerate(maps))

    def _branch(self, index: int, map_: Tensor, number: int) -> SemanticBranch:
        width = self.channels
        if isinstance(width, tuple):
            width = width[index] if len(width) == number else None
        if map_.shape[1] != width:
            raise ValueError(
                f'SemanticNeck.channels={self.channels}, but the neck gives '
                f'{number} maps, and map {index} has {map_.shape[1]} '
                'channels.')
        return self.branches[self.widths.index(width)]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any,
                              **kwargs: Any) -> None:
        own = (f'{prefix}wrapped.', f'{prefix}branches.')
        for key in list(state_dict):
            # A checkpoint of the detector with the neck alone.
            if key.startswith(prefix) and not key.startswith(own):
                name = key[len(prefix):]
                state_dict[f'{prefix}wrapped.{name}'] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
