# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""FastInst's head: from the backbone's maps to classes, masks and losses."""
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.models.dense_heads.anchor_free_head import AnchorFreeHead
from mmdet.models.layers import MLP
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.structures import SampleList
from mmengine.model import ModuleList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmsemi.models.layers import (FastInstDecoderLayer,
                                  InstanceActivationQueries, QueryProposals,
                                  guided_attn_mask, predicted_attn_mask)
from mmsemi.models.losses.soft_cross_entropy_loss import check_soft_loss
from mmsemi.registry import MODELS
from .fastinst_losses import FastInstLossMixin
from .soft_label_query_heads import SoftLabelQueryMixin

_ATTENTION = dict(embed_dims=256, num_heads=8)
_DECODER = dict(
    num_layers=3,
    layer_cfg=dict(
        self_attn_cfg=_ATTENTION,
        cross_attn_cfg=_ATTENTION,
        ffn_cfg=dict(embed_dims=256, feedforward_channels=1024)))


class LayerOutput(NamedTuple):
    """What one prediction head says."""
    cls_score: Optional[Tensor]  #: Logits (N, Q, C + 1), if asked for.
    mask_pred: Tensor  #: Logits (N, Q, h, w).
    semantic: Optional[Tensor] = None  #: The semantic branch's alone.


class DecoderState(NamedTuple):
    """What a decoder layer passes on."""
    query: Tensor  #: (N, Q + auxiliary, D).
    pixel: Tensor  #: (N, h * w, D).


class DecoderOutput(NamedTuple):
    """All that one pass through the head computes."""
    proposals: QueryProposals
    query_pos: Tensor  #: (N, Q + auxiliary, D).
    pixel_pos: Tensor  #: (1, h * w, D).
    states: List[DecoderState]  #: Before the first layer and after each.
    outputs: List[LayerOutput]  #: Of the head at each of these states.


@MODELS.register_module()
class FastInstHead(FastInstLossMixin, Mask2FormerHead):
    r"""FastInst's head, with everything behind the backbone.

    The ``pixel_decoder`` makes maps of strides 8, 16 and 32; the cells of
    stride 16 that show instances best become queries, and together with
    auxiliary queries and the pixels of stride 8 they pass the dual-path
    layers. A prediction head before the first layer and one after each gives
    classes and masks, and the masks limit what queries look at next.

    In training every layer runs a second time, on its own output, with true
    masks in place of predicted ones; the queries keep the instances that the
    last layer matched them to. With P the predictions, G those of the second
    pass, and L layers,

    .. math::
        \mathcal L = \mathcal L_{proposal} + \sum_{j=0}^{L} \mathcal L(P_j)
        + \sum_{i=0}^{L-1} \mathcal L(G_i)

    J. He et al., FastInst: A Simple Query-Based Model for Real-Time Instance
    Segmentation, CVPR 2023 (arXiv 2303.08594), L_IA-q + L_pred + L'_pred;
    sizes and weights are those of its official code. Losses are divided by
    the number of matched instances, as in mmdet's ``Mask2FormerHead``; the
    official code divides by all, which differs if an image has more
    instances than queries.

    Args:
        in_channels (Sequence[int]): Channels of the backbone's maps, finest
            first. Defaults to (512, 1024, 2048).
        feat_channels (int): Channels D. Defaults to 256.
        out_channels (int): Channels of mask embeddings. Defaults to 256.
        num_things_classes (int): Defaults to 80.
        num_stuff_classes (int): Defaults to 0; FastInst was not published
            with any.
        num_queries (int): Queries Q. An image needs as many cells of 16 x 16
            pixels. Defaults to 100.
        num_aux_queries (int): Learned queries that predict nothing. Defaults
            to 8.
        guided (bool): Whether to run layers a second time with true masks.
            Defaults to True.
        pixel_decoder (dict, optional): Defaults to None:
            :class:`FastInstPixelDecoder`.
        transformer_decoder (dict, optional): ``num_layers`` (1 in the
            variant D1, 3 in D3) and ``layer_cfg``, arguments of
            :class:`FastInstDecoderLayer`. Defaults to None: D3.
        semantic_branch (dict, optional): A :class:`SemanticBranch` that all
            prediction heads share. Defaults to None.
        loss_cls (dict): Classification, with ``class_weight`` of all C + 1.
        loss_mask (dict): Masks, at sampled points.
        loss_dice (dict): The same.
        loss_proposal (dict): The dense classifier that queries come from.
        train_cfg (dict, optional): ``assigner`` for queries,
            ``proposal_assigner`` for cells, ``sampler``, ``num_points``
            (12,544), ``oversample_ratio`` (3) and
            ``importance_sample_ratio`` (0.75). Defaults to None.
        test_cfg (dict, optional): Not used here. Defaults to None.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 in_channels: Sequence[int] = (512, 1024, 2048),
                 feat_channels: int = 256,
                 out_channels: int = 256,
                 num_things_classes: int = 80,
                 num_stuff_classes: int = 0,
                 num_queries: int = 100,
                 num_aux_queries: int = 8,
                 guided: bool = True,
                 pixel_decoder: Optional[dict] = None,
                 transformer_decoder: Optional[dict] = None,
                 semantic_branch: Optional[dict] = None,
                 *,
                 loss_cls: dict,
                 loss_mask: dict,
                 loss_dice: dict,
                 loss_proposal: dict,
                 train_cfg: Optional[dict] = None,
                 test_cfg: Optional[dict] = None) -> None:
        # Mask2Former's own layers are not wanted.
        super(AnchorFreeHead, self).__init__()
        decoder = transformer_decoder or _DECODER
        num_layers = decoder['num_layers']
        for name, value, least in (('num_queries', num_queries, 1),
                                   ('num_aux_queries', num_aux_queries, 0),
                                   ('transformer_decoder.num_layers',
                                    num_layers, 1)):
            if value < least:
                raise ValueError(f'panoptic_head.{name}={value}; allowed are '
                                 f'whole numbers from {least}.')
        self.num_things_classes = num_things_classes
        self.num_stuff_classes = num_stuff_classes
        self.num_classes = num_things_classes + num_stuff_classes
        self.num_queries = num_queries
        self.num_aux_queries = num_aux_queries
        self.guided = guided

        self.pixel_decoder = MODELS.build(
            dict(
                pixel_decoder or dict(type='mmsemi.FastInstPixelDecoder'),
                in_channels=in_channels,
                feat_channels=feat_channels))
        self.query_proposal = InstanceActivationQueries(
            self.num_classes, feat_channels, num_queries)
        side = round(num_queries**0.5)
        self.meta_pos_embed = nn.Parameter(
            torch.zeros(1, feat_channels, side, side))
        self.aux_query_feat = nn.Embedding(num_aux_queries, feat_channels)
        self.aux_query_pos = nn.Embedding(num_aux_queries, feat_channels)
        self.decoder_layers = ModuleList(
            FastInstDecoderLayer(**decoder['layer_cfg'])
            for _ in range(num_layers))
        self.num_heads = decoder['layer_cfg']['cross_attn_cfg']['num_heads']
        heads = range(num_layers + 1)
        self.query_norms = ModuleList(
            nn.LayerNorm(feat_channels) for _ in heads)
        self.cls_embeds = ModuleList(
            MLP(feat_channels, feat_channels, self.num_classes + 1, 3)
            for _ in heads)
        self.mask_embeds = ModuleList(
            MLP(feat_channels, feat_channels, out_channels, 3) for _ in heads)
        self.mask_feat_projs = ModuleList(
            nn.Linear(feat_channels, out_channels) for _ in heads)
        self.semantic_branch = None
        if semantic_branch is not None:
            settings = dict(
                num_classes=self.num_classes, in_channels=feat_channels)
            self.semantic_branch = MODELS.build({
                'type': 'mmsemi.SemanticBranch',
                **semantic_branch,
                **settings
            })

        self._build_losses(loss_cls, loss_mask, loss_dice, loss_proposal)
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg
        if train_cfg:
            self._build_training(train_cfg)

    def init_weights(self) -> None:
        """Draw the weights as the official code does.

        Its positional map is uninitialised memory, mostly zero; here it has
        a standard deviation of 0.02. What is not named keeps torch's own.
        """
        self.pixel_decoder.init_weights()
        nn.init.trunc_normal_(self.meta_pos_embed, std=0.02)
        for layer in self.decoder_layers:
            layer.init_weights()
        if hasattr(self.semantic_branch, 'init_weights'):
            self.semantic_branch.init_weights()

    # From maps to predictions ---------------------------------------------

    def forward(self,
                x: Sequence[Tensor],
                batch_data_samples: Optional[SampleList] = None
                ) -> Tuple[List[Tensor], List[Tensor]]:
        """Predict classes and masks.

        Args:
            x (Sequence[Tensor]): The backbone's maps (N, C, h, w).
            batch_data_samples (list, optional): Not used.

        Returns:
            tuple[list[Tensor], list[Tensor]]: Logits of classes
            (N, Q, C + 1), in training of all L + 1 prediction heads, else of
            the last one alone, and logits of masks (N, Q, h, w) of all.
        """
        outputs = self.decode(x, self.training).outputs
        classes = [out.cls_score for out in outputs]
        masks = [out.mask_pred for out in outputs]
        return (classes if self.training else classes[-1:]), masks

    def decode(self, x: Sequence[Tensor], all_classes: bool) -> DecoderOutput:
        """Run everything but the second pass.

        Args:
            x (Sequence[Tensor]): The backbone's maps (N, C, h, w).
            all_classes (bool): Whether to classify before the last layer.

        Returns:
            DecoderOutput: Predictions and what they come from.
        """
        maps = self.pixel_decoder(x)
        fine, coarse = maps[-1], maps[-2]
        proposals = self.query_proposal(coarse, self._positions(coarse))
        auxiliary = [
            embedding.weight.expand(len(fine), -1, -1)
            for embedding in (self.aux_query_feat, self.aux_query_pos)
        ]
        query = torch.cat([proposals.features, auxiliary[0]], dim=1)
        query_pos = torch.cat([proposals.positions, auxiliary[1]], dim=1)
        pixel = fine.flatten(2).transpose(1, 2)
        pixel_pos = self._positions(fine).flatten(2).transpose(1, 2)

        size = fine.shape[-2:]
        last = len(self.decoder_layers)
        states = [DecoderState(query, pixel)]
        outputs = [self._predict_layer(0, states[0], size, all_classes)]
        for i, layer in enumerate(self.decoder_layers):
            attn_mask = predicted_attn_mask(outputs[-1].mask_pred,
                                            self.num_aux_queries,
                                            self.num_heads)
            states.append(
                DecoderState(
                    *layer(*states[-1], query_pos, pixel_pos, attn_mask)))
            outputs.append(
                self._predict_layer(i + 1, states[-1], size, all_classes
                                    or i + 1 == last))
        return DecoderOutput(proposals, query_pos, pixel_pos, states, outputs)

    def decode_guided(self, decoded: DecoderOutput,
                      batch_gt_instances: List[InstanceData],
                      matched: List[AssignResult]) -> List[LayerOutput]:
        """Run every layer again, on its output, with true masks.

        Args:
            decoded (DecoderOutput): Of the first pass.
            batch_gt_instances (list[InstanceData]): With ``masks``
                (M, H, W) of the padded images.
            matched (list[AssignResult]): Instances of the queries.

        Returns:
            list[LayerOutput]: Predictions after every layer.
        """
        size = decoded.outputs[-1].mask_pred.shape[-2:]
        queries = [(m.gt_inds > 0).nonzero()[:, 0] for m in matched]
        masks = [
            gt.masks[m.gt_inds[query] - 1]
            for gt, m, query in zip(batch_gt_instances, matched, queries)
        ]
        attn_mask = guided_attn_mask(masks, queries,
                                     self.num_queries + self.num_aux_queries,
                                     size, self.num_heads)
        outputs = []
        for i, layer in enumerate(self.decoder_layers):
            query, pixel = decoded.states[i + 1]
            state = layer(query, pixel, decoded.query_pos, decoded.pixel_pos,
                          attn_mask)
            outputs.append(
                self._predict_layer(i + 1, DecoderState(*state), size, True))
        return outputs

    def _positions(self, feat: Tensor) -> Tensor:
        return F.interpolate(
            self.meta_pos_embed,
            feat.shape[-2:],
            mode='bilinear',
            align_corners=False)

    def _predict_layer(self, index: int, state: DecoderState,
                       size: Tuple[int, int], with_cls: bool) -> LayerOutput:
        query = self.query_norms[index](state.query[:, :self.num_queries])
        mask_embed = self.mask_embeds[index](query)
        mask_feat = self.mask_feat_projs[index](state.pixel)
        mask_pred = (mask_embed @ mask_feat.transpose(1, 2)).unflatten(2, size)
        if not with_cls:
            return LayerOutput(None, mask_pred)
        classify = self.cls_embeds[index]
        if self.semantic_branch is None:
            return LayerOutput(classify(query), mask_pred)
        with self.semantic_branch.recording() as semantic:
            cls_score = self.semantic_branch(query, classify)
        return LayerOutput(cls_score, mask_pred, *semantic)


@MODELS.register_module()
class SoftLabelFastInstHead(SoftLabelQueryMixin, FastInstHead):
    """:class:`FastInstHead` with soft labels.

    See :class:`SoftLabelQueryMixin`; arguments and weights are those of the
    base class. ``loss_cls`` and ``loss_proposal`` must be a
    :class:`SoftCrossEntropyLoss`: cells learn soft labels as queries do.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        check_soft_loss(self.loss_proposal, 'panoptic_head.loss_proposal')
