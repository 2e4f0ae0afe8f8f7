# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Query heads that also ask what the classes are called."""
from typing import Any, Dict, List

from mmdet.models.dense_heads import Mask2FormerHead, MaskFormerHead
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmsemi.models.semantic_classifiers import SemanticClsPredictor
from mmsemi.registry import MODELS
from .soft_label_query_heads import SoftLabelQueryMixin


class SemanticQueryMixin:
    """A semantic branch for a subclass of mmdet's ``MaskFormerHead``.

    One branch, shared by all decoder layers, is fused with the classifier
    ``cls_embed``; queries are matched by the fused logits. In every layer
    the semantic logits learn the targets of the fused ones, as
    ``loss_cls_semantic``.

    Use it before other mixins and the base class: ``class X(
    SemanticQueryMixin, SoftLabelQueryMixin, Mask2FormerHead)``. A checkpoint
    without the branch loads into it; the branch is new then.

    Args:
        *args: Arguments of the base class.
        semantic_branch (dict): Arguments of :class:`SemanticBranch` but
            ``num_classes`` and ``in_channels``.
        **kwargs: Arguments of the base class.

    Raises:
        ValueError: See :class:`SemanticBranch`; stuff classes need texts
            too, after the things.
    """

    def __init__(self, *args: Any, semantic_branch: dict,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        linear = self.cls_embed
        self.cls_embed = SemanticClsPredictor(
            linear.in_features, linear.out_features, **semantic_branch)
        # The layers' semantic logits between the forward pass and its loss,
        # and the losses of them.
        self._semantic_logits: List[Tensor] = []
        self._semantic_losses: List[Tensor] = []

    def forward(self, *args: Any, **kwargs: Any) -> tuple:
        """Return fused logits and masks of all layers; see the base class."""
        with self.cls_embed.branch.recording() as recorded:
            outputs = super().forward(*args, **kwargs)
        # MaskFormer classifies all layers at once, Mask2Former one by one.
        self._semantic_logits = [
            layer for logits in recorded
            for layer in (logits if logits.dim() == 4 else [logits])
        ]
        return outputs

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> Dict[str, Tensor]:
        """Compute the losses of all layers; see the base class."""
        losses = super().loss_by_feat(*args, **kwargs)
        semantic, self._semantic_losses = self._semantic_losses, []
        self._semantic_logits = []
        for i, loss in enumerate(semantic):
            prefix = '' if i == len(semantic) - 1 else f'd{i}.'
            losses[f'{prefix}loss_cls_semantic'] = loss
        return losses

    def _loss_by_feat_single(self, cls_scores: Tensor, mask_preds: Tensor,
                             batch_gt_instances: List[InstanceData],
                             batch_img_metas: List[dict]) -> tuple:
        if not self._semantic_logits:
            return super()._loss_by_feat_single(cls_scores, mask_preds,
                                                batch_gt_instances,
                                                batch_img_metas)
        calls: List[tuple] = []

        def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
            calls.append((args, kwargs))

        # The targets and the divisor are decided inside, by the base class
        # or a mixin.
        handle = self.loss_cls.register_forward_pre_hook(
            note, with_kwargs=True)
        try:
            losses = super()._loss_by_feat_single(cls_scores, mask_preds,
                                                  batch_gt_instances,
                                                  batch_img_metas)
        finally:
            handle.remove()
        # With soft labels they are the targets of the last call.
        args, kwargs = calls[-1]
        logits = self._semantic_logits.pop(0).flatten(0, 1)
        self._semantic_losses.append(
            self.cls_embed.branch.aux_weight *
            self.loss_cls(logits, *args[1:], **kwargs))
        return losses


@MODELS.register_module()
class SemanticMaskFormerHead(SemanticQueryMixin, MaskFormerHead):
    """mmdet's ``MaskFormerHead`` with a semantic branch.

    See :class:`SemanticQueryMixin`.
    """


@MODELS.register_module()
class SemanticMask2FormerHead(SemanticQueryMixin, Mask2FormerHead):
    """mmdet's ``Mask2FormerHead`` with a semantic branch.

    See :class:`SemanticQueryMixin`.
    """


@MODELS.register_module()
class SemanticSoftLabelMaskFormerHead(SemanticQueryMixin, SoftLabelQueryMixin,
                                      MaskFormerHead):
    """mmdet's ``MaskFormerHead`` with a semantic branch and soft labels.

    See :class:`SemanticQueryMixin` and :class:`SoftLabelQueryMixin`.
    """


@MODELS.register_module()
class SemanticSoftLabelMask2FormerHead(SemanticQueryMixin, SoftLabelQueryMixin,
                                       Mask2FormerHead):
    """mmdet's ``Mask2FormerHead`` with a semantic branch and soft labels.

    See :class:`SemanticQueryMixin` and :class:`SoftLabelQueryMixin`.
    """
