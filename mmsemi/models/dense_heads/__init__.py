# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .fastinst_head import FastInstHead, SoftLabelFastInstHead
from .query_fusion_head import QueryFusionHead
from .semantic_query_heads import (SemanticMask2FormerHead,
                                   SemanticMaskFormerHead, SemanticQueryMixin,
                                   SemanticSoftLabelMask2FormerHead,
                                   SemanticSoftLabelMaskFormerHead)
from .soft_label_query_heads import (SoftLabelMask2FormerHead,
                                     SoftLabelMaskFormerHead,
                                     SoftLabelQueryMixin)

__all__ = [
    'FastInstHead', 'QueryFusionHead', 'SemanticMask2FormerHead',
    'SemanticMaskFormerHead', 'SemanticQueryMixin',
    'SemanticSoftLabelMask2FormerHead', 'SemanticSoftLabelMaskFormerHead',
    'SoftLabelFastInstHead', 'SoftLabelMask2FormerHead',
    'SoftLabelMaskFormerHead', 'SoftLabelQueryMixin'
]
