# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .backbones import DINOBackbone
from .label_smoothing import ClassPrototypes, SimilarityLabelSmoothing
from .losses import FederatedLoss, OhemCrossEntropyLoss, SoftCrossEntropyLoss
from .multi_branch_preprocessor import MultiBranchDataPreprocessor

__all__ = [
    'ClassPrototypes', 'DINOBackbone', 'FederatedLoss',
    'MultiBranchDataPreprocessor', 'OhemCrossEntropyLoss',
    'SimilarityLabelSmoothing', 'SoftCrossEntropyLoss'
]

if is_installed('mmdet'):
    from .dense_heads import (QueryFusionHead, SoftLabelMask2FormerHead,
                              SoftLabelMaskFormerHead)
    from .roi_heads import (SoftLabelRoIHead, SoftLabelShared2FCBBoxHead,
                            SoftLabelShared4Conv1FCBBoxHead)
    from .task_modules import SoftClassificationCost
    __all__ += [
        'QueryFusionHead', 'SoftClassificationCost',
        'SoftLabelMask2FormerHead', 'SoftLabelMaskFormerHead',
        'SoftLabelRoIHead', 'SoftLabelShared2FCBBoxHead',
        'SoftLabelShared4Conv1FCBBoxHead'
    ]

if is_installed('mmseg'):
    from .decode_heads import DPTHead
    __all__ += ['DPTHead']
