# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .backbones import DINOBackbone
from .label_smoothing import ClassPrototypes, SimilarityLabelSmoothing
from .losses import (ClassWeightedCrossEntropyLoss, FederatedLoss,
                     OhemCrossEntropyLoss, SoftCrossEntropyLoss)
from .multi_branch_preprocessor import MultiBranchDataPreprocessor
from .necks import SemanticNeck
from .semantic_branch import SemanticBranch
from .semantic_classifiers import SemanticClsPredictor, SemanticConvSeg
from .text import BertTextEncoder, TextEmbeddings, encode_classes

__all__ = [
    'BertTextEncoder', 'ClassPrototypes', 'ClassWeightedCrossEntropyLoss',
    'DINOBackbone', 'FederatedLoss', 'MultiBranchDataPreprocessor',
    'OhemCrossEntropyLoss', 'SemanticBranch', 'SemanticClsPredictor',
    'SemanticConvSeg', 'SemanticNeck', 'SimilarityLabelSmoothing',
    'SoftCrossEntropyLoss', 'TextEmbeddings', 'encode_classes'
]

if is_installed('mmdet'):
    from .dense_heads import (FastInstHead, QueryFusionHead,
                              SemanticMask2FormerHead, SemanticMaskFormerHead,
                              SemanticSoftLabelMask2FormerHead,
                              SemanticSoftLabelMaskFormerHead,
                              SoftLabelFastInstHead, SoftLabelMask2FormerHead,
                              SoftLabelMaskFormerHead)
    from .detectors import FastInst
    from .layers import FastInstPixelDecoder
    from .roi_heads import (SemanticShared2FCBBoxHead,
                            SemanticShared4Conv1FCBBoxHead,
                            SemanticSoftLabelShared2FCBBoxHead,
                            SoftLabelRoIHead, SoftLabelShared2FCBBoxHead,
                            SoftLabelShared4Conv1FCBBoxHead)
    from .task_modules import LocationCost, SoftClassificationCost
    __all__ += [
        'FastInst', 'FastInstHead', 'FastInstPixelDecoder', 'LocationCost',
        'QueryFusionHead', 'SemanticMask2FormerHead',
        'SemanticMaskFormerHead', 'SemanticShared2FCBBoxHead',
        'SemanticShared4Conv1FCBBoxHead', 'SemanticSoftLabelMask2FormerHead',
        'SemanticSoftLabelMaskFormerHead',
        'SemanticSoftLabelShared2FCBBoxHead', 'SoftClassificationCost',
        'SoftLabelFastInstHead', 'SoftLabelMask2FormerHead',
        'SoftLabelMaskFormerHead', 'SoftLabelRoIHead',
        'SoftLabelShared2FCBBoxHead', 'SoftLabelShared4Conv1FCBBoxHead'
    ]

if is_installed('mmseg'):
    from .backbones import LAVTSwin
    from .decode_heads import (DPTHead, LAVTHead, SemanticSegMixin,
                               semantic_seg_head)
    from .segmentors import ReferringSegmentor
    __all__ += [
        'DPTHead', 'LAVTHead', 'LAVTSwin', 'ReferringSegmentor',
        'SemanticSegMixin', 'semantic_seg_head'
    ]
