# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""FastInst."""
from typing import Optional

from mmdet.models.detectors import MaskFormer
from mmengine.config import ConfigDict

from mmsemi.registry import MODELS


@MODELS.register_module()
class FastInst(MaskFormer):
    """FastInst, a query-based instance segmenter for real time.

    J. He, P. Li, Y. Geng, X. Xie, FastInst: A Simple Query-Based Model for
    Real-Time Instance Segmentation, CVPR 2023 (arXiv 2303.08594).

    It needs no compiled ops, unless the backbone does.

    Args:
        backbone (dict): With maps of strides 8, 16 and 32.
        panoptic_head (dict): A :class:`FastInstHead`.
        panoptic_fusion_head (dict): mmdet's ``MaskFormerFusionHead``, or
            mmsemi's :class:`QueryFusionHead`, which tells every class's
            probability to pseudo-label stages.
        neck (dict, optional): Between them. Defaults to None.
        train_cfg (dict, optional): See :class:`FastInstHead`.
        test_cfg (dict, optional): ``instance_on``, ``panoptic_on`` and
            ``max_per_image``, which is lowered to the number of pairs of
            query and class where there are fewer.
        data_preprocessor (dict, optional): With ``pad_mask=True`` and
            ``pad_size_divisor=32``.
        init_cfg (dict, optional): Defaults to None.

    Raises:
        ValueError: If both heads disagree on the number of classes.
    """

    def __init__(self,
                 backbone: dict,
                 panoptic_head: dict,
                 panoptic_fusion_head: dict,
                 neck: Optional[dict] = None,
                 train_cfg: Optional[dict] = None,
                 test_cfg: Optional[dict] = None,
                 data_preprocessor: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(
            backbone=backbone,
            neck=neck,
            panoptic_head=ConfigDict(panoptic_head),
            panoptic_fusion_head=ConfigDict(panoptic_fusion_head),
            train_cfg=train_cfg,
            test_cfg=ConfigDict(test_cfg or {}),
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg)
        fusion = self.panoptic_fusion_head
        for name in ('num_things_classes', 'num_stuff_classes'):
            ours, theirs = getattr(self, name), getattr(fusion, name)
            if ours != theirs:
                raise ValueError(
                    f'panoptic_head.{name}={ours} and panoptic_fusion_head.'
                    f'{name}={theirs}; they must be equal.')
        pairs = self.panoptic_head.num_queries * self.num_classes
        # topk refuses to choose from fewer.
        fusion.test_cfg = ConfigDict(
            fusion.test_cfg,
            max_per_image=min(pairs,
                              fusion.test_cfg.get('max_per_image', 100)))
