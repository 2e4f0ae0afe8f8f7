# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Box heads that also learn what the names of the classes say alone."""
from typing import Any, List, Optional, Tuple

from mmdet.models.roi_heads.bbox_heads import (Shared2FCBBoxHead,
                                               Shared4Conv1FCBBoxHead)
from mmdet.models.task_modules.samplers import SamplingResult
from mmengine.config import ConfigDict
from torch import Tensor

from mmsemi.models.semantic_classifiers import SemanticClsPredictor
from mmsemi.registry import MODELS
from .soft_label_bbox_heads import SoftLabelBBoxMixin


class SemanticBBoxMixin:
    """The semantic branch's auxiliary loss for mmdet's ``BBoxHead``.

    ``cls_predictor_cfg`` must be a ``mmsemi.SemanticClsPredictor``. Its
    semantic logits are classified like the fused ones, by the same targets,
    class weights and divisor; the loss is ``loss_cls_semantic``, and the
    accuracy of the class names alone ``acc_semantic``.

    Use it before other mixins and the base class: ``class X(
    SemanticBBoxMixin, SoftLabelBBoxMixin, BBoxHead)``.

    Raises:
        ValueError: If the classifier has no semantic branch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        predictor = getattr(self, 'fc_cls', None)
        if not isinstance(predictor, SemanticClsPredictor):
            raise ValueError(
                'bbox_head.cls_predictor_cfg builds a '
                f'{type(predictor).__name__}; a head of type '
                f'{type(self).__name__} needs '
                "dict(type='mmsemi.SemanticClsPredictor', "
                'text_embeddings=...).')
        # Between the forward pass and its loss.
        self._semantic_logits: List[Tensor] = []

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Return fused logits and box deltas; see the base class."""
        with self.fc_cls.branch.recording() as recorded:
            outputs = super().forward(x)
        self._semantic_logits = recorded
        return outputs

    def loss_and_target(self,
                        cls_score: Tensor,
                        bbox_pred: Tensor,
                        rois: Tensor,
                        sampling_results: List[SamplingResult],
                        rcnn_train_cfg: ConfigDict,
                        concat: bool = True,
                        reduction_override: Optional[str] = None) -> dict:
        """Compute the losses; see mmdet's ``BBoxHead``.

        Args:
            cls_score (Tensor): Fused logits (R, C + 1).
            bbox_pred (Tensor): Box deltas (R, 4 * C) or (R, 4).
            rois (Tensor): (R, 5), image and box.
            sampling_results (list[SamplingResult]): Of each image.
            rcnn_train_cfg (ConfigDict): The RoI head's training settings.
            concat (bool): Whether targets are concatenated over images.
                Defaults to True.
            reduction_override (str, optional): Instead of the losses' own.

        Returns:
            dict: ``loss_bbox``, the losses, and ``bbox_targets``.
        """
        recorded, self._semantic_logits = self._semantic_logits, []
        results = super().loss_and_target(cls_score, bbox_pred, rois,
                                          sampling_results, rcnn_train_cfg,
                                          concat, reduction_override)
        for semantic_logits in recorded[-1:]:
            # Without boxes only the classification is left of it.
            losses = super().loss_and_target(semantic_logits, None, rois,
                                             sampling_results, rcnn_train_cfg,
                                             concat, reduction_override)
            for name, value in losses['loss_bbox'].items():
                if 'loss' in name:
                    value = self.fc_cls.branch.aux_weight * value
                results['loss_bbox'][f'{name}_semantic'] = value
        return results


@MODELS.register_module()
class SemanticShared2FCBBoxHead(SemanticBBoxMixin, Shared2FCBBoxHead):
    """mmdet's ``Shared2FCBBoxHead`` with a semantic branch.

    See :class:`SemanticBBoxMixin`.
    """


@MODELS.register_module()
class SemanticShared4Conv1FCBBoxHead(SemanticBBoxMixin,
                                     Shared4Conv1FCBBoxHead):
    """mmdet's ``Shared4Conv1FCBBoxHead`` with a semantic branch.

    See :class:`SemanticBBoxMixin`.
    """


@MODELS.register_module()
class SemanticSoftLabelShared2FCBBoxHead(SemanticBBoxMixin,
                                         SoftLabelBBoxMixin,
                                         Shared2FCBBoxHead):
    """mmdet's ``Shared2FCBBoxHead`` with a semantic branch and soft labels.

    See :class:`SemanticBBoxMixin` and :class:`SoftLabelBBoxMixin`; the
    semantic logits learn the soft labels too.
    """
