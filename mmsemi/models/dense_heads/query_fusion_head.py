# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Pseudo-labels out of queries: one query, one label."""
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmengine.structures import InstanceData
from torch import Tensor

from mmsemi.registry import MODELS
from mmsemi.structures.view_geometry import masks_to_boxes


@MODELS.register_module()
class QueryFusionHead(MaskFormerFusionHead):
    """mmdet's ``MaskFormerFusionHead`` that can give one label per query.

    For evaluation mmdet takes the best pairs of query and class, so that a
    query may come out several times, and multiplies their scores with the
    mask's. With :attr:`emit_soft_labels` a query is an instance if its most
    likely class of C + 1 is a thing, with that probability for a score.

    The rule of T. Berrada et al., Guided Distillation for Semi-Supervised
    Instance Segmentation, WACV 2024. Its thresholds on score and mask are
    stages of the pseudo-label pipeline.
    """

    emit_soft_labels: bool = False
    """Whether to give one label per query, with ``soft_labels``."""

    def instance_postprocess(self, mask_cls: Tensor,
                             mask_pred: Tensor) -> InstanceData:
        """Turn the queries of an image into instances.

        Args:
            mask_cls (Tensor): Logits (Q, C + 1) of the classes.
            mask_pred (Tensor): Logits (Q, H, W) of the masks.

        Returns:
            InstanceData: As in the base class. With
            :attr:`emit_soft_labels`, for N of the Q queries: ``labels``
            (N,), ``scores`` (N,), ``soft_labels`` (N, C + 1), ``masks``
            (N, H, W) bool, where the probability is above one half,
            ``mask_scores`` (N,), its mean there (0 for an empty mask), and
            ``bboxes`` (N, 4) around the masks.
        """
        if not self.emit_soft_labels:
            return super().instance_postprocess(mask_cls, mask_pred)
        prob = mask_cls.float().softmax(-1)
        scores, labels = prob.max(-1)
        kept = labels < self.num_things_classes
        logits = mask_pred[kept]
        masks = logits > 0
        inside = (logits.float().sigmoid() * masks).flatten(1).sum(1)
        results = InstanceData()
        results.bboxes = masks_to_boxes(masks)
        results.labels = labels[kept]
        results.scores = scores[kept]
        results.masks = masks
        results.mask_scores = inside / masks.flatten(1).sum(1).clamp(min=1)
        results.soft_labels = prob[kept]
        return results
