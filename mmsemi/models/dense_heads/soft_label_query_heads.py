# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Query heads that learn a probability of every class."""
from typing import List, Optional, Tuple

import torch
from mmdet.models.dense_heads import Mask2FormerHead, MaskFormerHead
from mmengine.structures import InstanceData
from torch import Tensor

from mmsemi.models.losses.soft_cross_entropy_loss import (check_soft_loss,
                                                          target_mass)
from mmsemi.models.task_modules.soft_classification_cost import SOFT_LABELS_KEY
from mmsemi.registry import MODELS


class SoftLabelQueryMixin:
    """Soft labels for a subclass of mmdet's ``MaskFormerHead``.

    A query that is matched to an instance with ``soft_labels`` learns these,
    in every decoder layer; the others learn that there is no object. The
    classification loss is divided by the class-weighted mass of the targets,
    the sum over queries i and classes k of w_k q_ik. With one-hot soft
    labels the losses are those of the base class, and without soft labels
    nothing differs from it.

    Queries are matched by the instances' ``labels``, unless the assigner
    uses :class:`SoftClassificationCost`.

    Use it before the base class. ``loss_cls`` must be a
    :class:`SoftCrossEntropyLoss`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        check_soft_loss(self.loss_cls, 'panoptic_head.loss_cls')
        # What the classification of a decoder layer learns, between the
        # matching and the loss.
        self._cls_targets: Optional[Tuple[Tensor, Tensor, Tensor]] = None

    def preprocess_gt(
            self, batch_gt_instances: List[InstanceData],
            batch_gt_semantic_segs: List[Optional[Tensor]]
    ) -> List[InstanceData]:
        """Bring the ground truth into shape; see the base class.

        Args:
            batch_gt_instances (list[InstanceData]): With or without
                ``soft_labels`` (N, C + 1).
            batch_gt_semantic_segs (list): Stuff, or None.

        Returns:
            list[InstanceData]: ``labels``, ``masks`` and, if any image has
            them, ``soft_labels``; stuff and images without get the targets
            of their labels.
        """
        processed = super().preprocess_gt(batch_gt_instances,
                                          batch_gt_semantic_segs)
        if not any('soft_labels' in instances
                   for instances in batch_gt_instances):
            return processed
        for given, instances in zip(batch_gt_instances, processed):
            targets = self.loss_cls.expand(instances.labels,
                                           self.num_classes + 1)
            if 'soft_labels' in given:
                targets[:len(given)] = given.soft_labels
            instances.soft_labels = targets
        return processed

    def get_targets(self, cls_scores_list: List[Tensor],
                    mask_preds_list: List[Tensor],
                    batch_gt_instances: List[InstanceData],
                    batch_img_metas: List[dict], **kwargs) -> tuple:
        """Match queries and instances; see the base class."""
        targets = super().get_targets(cls_scores_list, mask_preds_list,
                                      batch_gt_instances, batch_img_metas,
                                      **kwargs)
        if 'soft_labels' not in batch_gt_instances[0]:
            return targets
        *targets, assigned = targets
        self._cls_targets = tuple(
            torch.cat(values) for values in (*targets[:2], assigned))
        return tuple(targets)

    def _get_targets_single(self, cls_score: Tensor, mask_pred: Tensor,
                            gt_instances: InstanceData,
                            img_meta: dict) -> tuple:
        if 'soft_labels' not in gt_instances:
            return super()._get_targets_single(cls_score, mask_pred,
                                               gt_instances, img_meta)
        soft_labels = gt_instances.soft_labels
        targets = super()._get_targets_single(
            cls_score, mask_pred, gt_instances,
            {
                **img_meta, SOFT_LABELS_KEY: soft_labels
            })
        sampling_result = targets[6]
        assigned = soft_labels.new_zeros(
            (self.num_queries, self.num_classes + 1))
        assigned[:, -1] = 1
        assigned[sampling_result.pos_inds] = soft_labels[
            sampling_result.pos_assigned_gt_inds]
        return (*targets, assigned)

    def _loss_by_feat_single(self, cls_scores: Tensor, mask_preds: Tensor,
                             batch_gt_instances: List[InstanceData],
                             batch_img_metas: List[dict]) -> tuple:
        losses = super()._loss_by_feat_single(cls_scores, mask_preds,
                                              batch_gt_instances,
                                              batch_img_metas)
        if 'soft_labels' not in batch_gt_instances[0]:
            return losses
        # The base class has learned labels here, at next to no cost.
        _, loss_mask, loss_dice = losses
        labels, label_weights, soft_target = self._cls_targets
        self._cls_targets = None
        class_weight = soft_target.new_tensor(self.class_weight)
        loss_cls = self.loss_cls(
            cls_scores.flatten(0, 1),
            labels,
            label_weights,
            avg_factor=target_mass(soft_target, class_weight).sum(),
            soft_target=soft_target)
        return loss_cls, loss_mask, loss_dice


@MODELS.register_module()
class SoftLabelMaskFormerHead(SoftLabelQueryMixin, MaskFormerHead):
    """mmdet's ``MaskFormerHead`` with soft labels.

    See :class:`SoftLabelQueryMixin`; arguments and weights are those of the
    base class.
    """


@MODELS.register_module()
class SoftLabelMask2FormerHead(SoftLabelQueryMixin, Mask2FormerHead):
    """mmdet's ``Mask2FormerHead`` with soft labels.

    See :class:`SoftLabelQueryMixin`; arguments and weights are those of the
    base class.
    """
