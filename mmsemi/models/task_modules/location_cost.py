# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Matching of queries to the instances that they lie in."""
from typing import Optional, Tuple

import torch.nn.functional as F
from mmcv.ops import point_sample
from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmengine.structures import InstanceData
from torch import Tensor

from mmsemi.registry import TASK_UTILS


@TASK_UTILS.register_module()
class LocationCost(BaseMatchCost):
    """Minus ``weight`` where a query lies in an instance, 0 elsewhere.

    With the large default a query is matched to an instance that it does not
    lie in only if no query of this instance is free.

    FastInst (J. He et al., CVPR 2023); the weight is that of its official
    code.

    Args:
        weight (float): Defaults to 1000.
    """

    def __init__(self, weight: float = 1000.) -> None:
        super().__init__(weight=weight)

    def __call__(self,
                 pred_instances: InstanceData,
                 gt_instances: InstanceData,
                 img_meta: Optional[dict] = None,
                 **kwargs) -> Tensor:
        """Compute the cost.

        Args:
            pred_instances (InstanceData): ``inside`` (Q, N) bool, from
                :func:`points_in_masks` or :func:`cells_in_masks`.
            gt_instances (InstanceData): The N instances.
            img_meta (dict, optional): Not used.

        Returns:
            Tensor: (Q, N) float32.
        """
        return pred_instances.inside.float() * -self.weight


def points_in_masks(points: Tensor, masks: Tensor) -> Tensor:
    """Tell which points lie in which masks.

    A point does if any of the pixels around it that bilinear sampling looks
    at does, so that points at the rim of the image can lie in masks too.

    Args:
        points (Tensor): x and y (Q, 2) from 0, the left or upper rim of the
            image, to 1.
        masks (Tensor): (N, H, W), 0 or 1.

    Returns:
        Tensor: (Q, N) bool.
    """
    points = points.float()[None].expand(len(masks), -1, -1)
    return point_sample(masks[:, None].float(), points)[:, 0].t() > 0


def cells_in_masks(size: Tuple[int, int], masks: Tensor) -> Tensor:
    """Tell which cells of a map overlap which masks.

    Args:
        size (tuple[int, int]): Height h and width w of the map, in cells.
        masks (Tensor): (N, H, W), 0 or 1.

    Returns:
        Tensor: (h * w, N) bool, cells row by row.
    """
    covered = F.adaptive_avg_pool2d(masks[:, None].float(), size)
    return covered.flatten(1).t() > 0
