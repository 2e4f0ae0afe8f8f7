# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Matching of queries to instances of uncertain class."""
from typing import Optional

import torch
from mmdet.models.task_modules.assigners import ClassificationCost
from mmengine.structures import InstanceData
from torch import Tensor

from mmsemi.registry import TASK_UTILS

#: mmdet's query heads hand nothing of an instance but labels and masks to
#: their costs. Soft labels travel with the meta information instead.
SOFT_LABELS_KEY = 'gt_soft_labels'


@TASK_UTILS.register_module()
class SoftClassificationCost(ClassificationCost):
    """Expected probability of an instance's class, negated.

    With probabilities P of the queries and soft labels Q of the instances
    the cost is -P Q^T; where instances have labels only it is mmdet's
    ``ClassificationCost``, and with one-hot soft labels both are equal.

    Args:
        weight (float): Factor. Defaults to 1.
    """

    def __call__(self,
                 pred_instances: InstanceData,
                 gt_instances: InstanceData,
                 img_meta: Optional[dict] = None,
                 **kwargs) -> Tensor:
        """Compute the cost.

        Args:
            pred_instances (InstanceData): ``scores``: logits (Q, C + 1).
            gt_instances (InstanceData): ``labels`` (N,) and possibly
                ``soft_labels`` (N, C + 1).
            img_meta (dict, optional): Where the soft labels may be instead.

        Returns:
            Tensor: (Q, N).
        """
        soft_labels = gt_instances.get('soft_labels',
                                       (img_meta or {}).get(SOFT_LABELS_KEY))
        if soft_labels is None:
            return super().__call__(pred_instances, gt_instances, img_meta,
                                    **kwargs)
        logits = pred_instances.scores
        with torch.autocast(logits.device.type, enabled=False):
            prob = logits.float().softmax(-1)
            return -(prob @ soft_labels.float().t()) * self.weight
