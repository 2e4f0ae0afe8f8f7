# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""An RoI head that learns and gives a probability of every class."""
from typing import List, Tuple

from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import SamplingResult
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from mmsemi.registry import MODELS
from .soft_label_bbox_heads import SoftLabelBBoxMixin


class SoftLabelSampler:
    """Note the soft labels of what a sampler draws.

    Args:
        sampler (BaseSampler): mmdet's sampler of RoIs.
    """

    def __init__(self, sampler) -> None:
        self.sampler = sampler

    def sample(self, assign_result: AssignResult,
               pred_instances: InstanceData, gt_instances: InstanceData,
               **kwargs) -> SamplingResult:
        """Sample as the sampler does.

        Args:
            assign_result (AssignResult): Which RoI is on which instance.
            pred_instances (InstanceData): The RoIs.
            gt_instances (InstanceData): The instances, with or without
                ``soft_labels`` (N, C + 1).
            **kwargs: Handed on.

        Returns:
            SamplingResult: Where there are soft labels also with
            ``pos_soft_labels`` (num_pos, C + 1).
        """
        result = self.sampler.sample(assign_result, pred_instances,
                                     gt_instances, **kwargs)
        if 'soft_labels' in gt_instances:
            result.pos_soft_labels = gt_instances.soft_labels[
                result.pos_assigned_gt_inds]
        return result


@MODELS.register_module()
class SoftLabelRoIHead(StandardRoIHead):
    """mmdet's ``StandardRoIHead`` with soft labels.

    Instances with a field ``soft_labels`` (N, C + 1), background last, are
    learned by it; see :class:`SoftLabelBBoxMixin`, which the box head must
    be made of, such as ``mmsemi.SoftLabelShared2FCBBoxHead``. Arguments and
    weights are those of the base class.

    Raises:
        ValueError: If the box head knows no soft labels.
    """

    def init_bbox_head(self, bbox_roi_extractor: ConfigDict,
                       bbox_head: ConfigDict) -> None:
        """Build the box head; see the base class."""
        super().init_bbox_head(bbox_roi_extractor, bbox_head)
        if not isinstance(self.bbox_head, SoftLabelBBoxMixin):
            raise ValueError(
                'SoftLabelRoIHead.bbox_head is '
                f'{type(self.bbox_head).__name__}, which knows no soft '
                "labels; use type='mmsemi.SoftLabelShared2FCBBoxHead', "
                "'mmsemi.SoftLabelShared4Conv1FCBBoxHead' or another head "
                'with mmsemi.models.roi_heads.SoftLabelBBoxMixin.')

    def init_assigner_sampler(self) -> None:
        """Build assigner and sampler; see the base class."""
        super().init_assigner_sampler()
        if self.bbox_sampler is not None:
            self.bbox_sampler = SoftLabelSampler(self.bbox_sampler)

    def predict_bbox(self,
                     x: Tuple[Tensor],
                     batch_img_metas: List[dict],
                     rpn_results_list: List[InstanceData],
                     rcnn_test_cfg: ConfigDict,
                     rescale: bool = False) -> List[InstanceData]:
        """Predict boxes; see the base class.

        Returns:
            list[InstanceData]: With ``soft_labels`` where the box head has
            ``emit_soft_labels``.
        """
        results = super().predict_bbox(x, batch_img_metas, rpn_results_list,
                                       rcnn_test_cfg, rescale)
        if self.bbox_head.emit_soft_labels and rcnn_test_cfg is not None:
            for result in results:
                # No proposal in the whole batch: the box head was not asked.
                if 'soft_labels' not in result:
                    result.soft_labels = result.scores.new_zeros(
                        (0, self.bbox_head.num_classes + 1))
        return results
