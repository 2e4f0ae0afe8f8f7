# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Box heads that learn and give a probability of every class."""
from typing import List, Optional

import torch
import torch.nn.functional as F
from mmdet.models.layers import multiclass_nms
from mmdet.models.losses import accuracy
from mmdet.models.roi_heads.bbox_heads import (Shared2FCBBoxHead,
                                               Shared4Conv1FCBBoxHead)
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures.bbox import get_box_type
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from mmsemi.models.losses.soft_cross_entropy_loss import check_soft_loss
from mmsemi.registry import MODELS


class SoftLabelBBoxMixin:
    """Soft labels for a subclass of mmdet's ``BBoxHead``.

    In training, RoIs on instances that have ``soft_labels`` learn these, and
    the others the background or their class; boxes and masks go on to follow
    the instance's ``labels``. With one-hot soft labels the losses are those
    of the base class, and without soft labels nothing differs from it.

    In prediction :attr:`emit_soft_labels` asks for the probabilities behind
    each box. Of the boxes of an RoI only that of its most likely class is
    then given, because several would contradict one another.

    Use it before the base class: ``class X(SoftLabelBBoxMixin, BBoxHead)``.
    ``loss_cls`` must be a :class:`SoftCrossEntropyLoss`.
    """

    emit_soft_labels: bool = False
    """Whether predictions carry ``soft_labels``."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        check_soft_loss(self.loss_cls, 'roi_head.bbox_head.loss_cls')

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
            cls_score (Tensor): Logits (R, C + 1).
            bbox_pred (Tensor): Box deltas (R, 4 * C) or (R, 4).
            rois (Tensor): (R, 5), image and box.
            sampling_results (list[SamplingResult]): Of each image; where its
                instances have soft labels with ``pos_soft_labels``
                (num_pos, C + 1).
            rcnn_train_cfg (ConfigDict): The RoI head's training settings.
            concat (bool): Whether targets are concatenated over images.
                Defaults to True.
            reduction_override (str, optional): Instead of the losses' own.

        Returns:
            dict: ``loss_bbox``, the losses, and ``bbox_targets``.
        """
        if not any(hasattr(res, 'pos_soft_labels')
                   for res in sampling_results):
            return super().loss_and_target(cls_score, bbox_pred, rois,
                                           sampling_results, rcnn_train_cfg,
                                           concat, reduction_override)
        targets = self.get_targets(
            sampling_results, rcnn_train_cfg, concat=concat)
        losses = {}
        if cls_score is not None and cls_score.numel() > 0:
            labels, label_weights = targets[:2]
            # As in the base class, down to where the number is.
            avg_factor = max(torch.sum(label_weights > 0).float().item(), 1.)
            losses['loss_cls'] = self.loss_cls(
                cls_score,
                labels,
                label_weights,
                avg_factor=avg_factor,
                reduction_override=reduction_override,
                soft_target=self.soft_targets(labels, sampling_results))
            losses['acc'] = accuracy(cls_score, labels)
        # Without scores it computes the boxes' loss alone.
        losses.update(
            self.loss(
                None,
                bbox_pred,
                rois,
                *targets,
                reduction_override=reduction_override))
        return dict(loss_bbox=losses, bbox_targets=targets)

    def soft_targets(self, labels: Tensor,
                     sampling_results: List[SamplingResult]) -> Tensor:
        """Return what the RoIs learn.

        Args:
            labels (Tensor): Labels (R,) of the RoIs, C for background.
            sampling_results (list[SamplingResult]): See
                :meth:`loss_and_target`.

        Returns:
            Tensor: (R, C + 1) float32.
        """
        targets = self.loss_cls.expand(labels, self.num_classes + 1)
        start = 0
        for result in sampling_results:
            # The positive RoIs of an image come first.
            num_pos = len(result.pos_priors)
            if hasattr(result, 'pos_soft_labels'):
                targets[start:start + num_pos] = result.pos_soft_labels
            start += num_pos + len(result.neg_priors)
        return targets

    def _predict_by_feat_single(
            self,
            roi: Tensor,
            cls_score: Tensor,
            bbox_pred: Tensor,
            img_meta: dict,
            rescale: bool = False,
            rcnn_test_cfg: Optional[ConfigDict] = None) -> InstanceData:
        args = (roi, cls_score, bbox_pred, img_meta, rescale)
        if not self.emit_soft_labels or rcnn_test_cfg is None:
            return super()._predict_by_feat_single(*args, rcnn_test_cfg)
        # All boxes of all classes, before any is dropped.
        bboxes = super()._predict_by_feat_single(*args, None).bboxes
        probs = F.softmax(cls_score.float(), dim=-1)
        dets, labels, index = multiclass_nms(
            bboxes.float(),
            probs,
            rcnn_test_cfg.score_thr,
            rcnn_test_cfg.nms,
            rcnn_test_cfg.max_per_img,
            return_inds=True,
            box_dim=get_box_type(self.predict_box_type)[1].box_dim)
        row = torch.div(index, self.num_classes, rounding_mode='floor')
        probs = probs[row]
        top = probs[:, :-1].argmax(1) == labels
        results = InstanceData()
        results.bboxes = dets[top, :-1]
        results.scores = dets[top, -1]
        results.labels = labels[top]
        results.soft_labels = probs[top]
        return results


@MODELS.register_module()
class SoftLabelShared2FCBBoxHead(SoftLabelBBoxMixin, Shared2FCBBoxHead):
    """mmdet's ``Shared2FCBBoxHead`` with soft labels.

    See :class:`SoftLabelBBoxMixin`; arguments and weights are those of the
    base class.
    """


@MODELS.register_module()
class SoftLabelShared4Conv1FCBBoxHead(SoftLabelBBoxMixin,
                                      Shared4Conv1FCBBoxHead):
    """mmdet's ``Shared4Conv1FCBBoxHead`` with soft labels.

    See :class:`SoftLabelBBoxMixin`; arguments and weights are those of the
    base class.
    """
