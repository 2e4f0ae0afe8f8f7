# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""FastInst's decoder layers and the masks of their attention."""
import copy
from typing import List, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmdet.models.layers import Mask2FormerTransformerDecoderLayer
from mmengine.model import ModuleList
from torch import Tensor, nn


class FastInstDecoderLayer(Mask2FormerTransformerDecoderLayer):
    """A dual-path layer: pixels learn from queries, then queries from them.

    The query path is the base class, a layer of Mask2Former. Before it, the
    pixel path lets every pixel attend to all queries, without mask.

    FastInst (J. He et al., CVPR 2023).

    Args:
        self_attn_cfg (dict): mmcv's ``MultiheadAttention`` among queries.
        cross_attn_cfg (dict): The same from queries to pixels, and from
            pixels to queries.
        ffn_cfg (dict): mmcv's ``FFN``, of both paths.
        norm_cfg (dict): Defaults to layer norm.
    """

    def __init__(self,
                 self_attn_cfg: dict,
                 cross_attn_cfg: dict,
                 ffn_cfg: dict,
                 norm_cfg: dict = dict(type='LN')) -> None:
        # mmdet and mmcv write into what they are given.
        super().__init__(
            copy.deepcopy(self_attn_cfg), copy.deepcopy(cross_attn_cfg),
            copy.deepcopy(ffn_cfg), norm_cfg)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.pixel_cross_attn = MultiheadAttention(**self.cross_attn_cfg)
        self.pixel_ffn = FFN(**self.ffn_cfg)
        self.pixel_norms = ModuleList(
            build_norm_layer(self.norm_cfg, self.embed_dims)[1]
            for _ in range(2))

    def init_weights(self) -> None:
        """Draw all matrices uniformly as X. Glorot and Y. Bengio do."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, query: Tensor, pixel: Tensor, query_pos: Tensor,
                pixel_pos: Tensor,
                attn_mask: Tensor) -> Tuple[Tensor, Tensor]:
        """Update pixels and queries.

        Args:
            query (Tensor): (N, Q, D).
            pixel (Tensor): (N, P, D).
            query_pos (Tensor): Positions (N, Q, D) of the queries.
            pixel_pos (Tensor): Positions (N, P, D) of the pixels.
            attn_mask (Tensor): (N * heads, Q, P) bool, True where a query
                must not look.

        Returns:
            tuple[Tensor, Tensor]: Queries and pixels, in the shapes given.
        """
        pixel = self.pixel_cross_attn(
            query=pixel,
            key=query,
            value=query,
            query_pos=pixel_pos,
            key_pos=query_pos)
        pixel = self.pixel_norms[0](pixel)
        pixel = self.pixel_norms[1](self.pixel_ffn(pixel))
        query = super().forward(
            query=query,
            key=pixel,
            value=pixel,
            query_pos=query_pos,
            key_pos=pixel_pos,
            cross_attn_mask=attn_mask)
        return query, pixel


def predicted_attn_mask(mask_pred: Tensor, num_aux_queries: int,
                        num_heads: int) -> Tensor:
    """Let queries look at the masks that they predict.

    Args:
        mask_pred (Tensor): Logits (N, Q, h, w). Pixels below 0 are blocked.
        num_aux_queries (int): Further queries, which look everywhere.
        num_heads (int): Heads of the attention.

    Returns:
        Tensor: (N * heads, Q + auxiliary, h * w) bool, True where blocked. A
        query that could look nowhere looks everywhere.
    """
    blocked = mask_pred.flatten(2) < 0
    return _attn_mask(
        F.pad(blocked, (0, 0, 0, num_aux_queries), value=False), num_heads)


def guided_attn_mask(masks: Sequence[Tensor], queries: Sequence[Tensor],
                     num_queries: int, size: Tuple[int, int],
                     num_heads: int) -> Tensor:
    """Let matched queries look at the true masks, and all others everywhere.

    The ground-truth-guided pass of FastInst (J. He et al., CVPR 2023).

    Args:
        masks (Sequence[Tensor]): Of each image the true masks (M, H, W) of
            matched queries.
        queries (Sequence[Tensor]): Of each image the M matched queries.
        num_queries (int): Number Q of queries, auxiliary ones included.
        size (tuple[int, int]): Height and width of the map of pixels.
        num_heads (int): Heads of the attention.

    Returns:
        Tensor: (N * heads, Q, h * w) bool, True where blocked. A query whose
        instance is too small to be left on the map looks everywhere.
    """
    rows: List[Tensor] = []
    for mask, query in zip(masks, queries):
        row = mask.new_zeros((num_queries, size[0] * size[1]),
                             dtype=torch.bool)
        # interpolate refuses what is empty.
        if len(mask):
            small = F.interpolate(mask[None].float(), size, mode='nearest')[0]
            row[query] = small.flatten(1) == 0
        rows.append(row)
    return _attn_mask(torch.stack(rows), num_heads)


def _attn_mask(blocked: Tensor, num_heads: int) -> Tensor:
    # Attention to nothing at all would not be a number.
    blocked = blocked & ~blocked.all(-1, keepdim=True)
    return blocked.repeat_interleave(num_heads, dim=0)
