# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .query_fusion_head import QueryFusionHead
from .soft_label_query_heads import (SoftLabelMask2FormerHead,
                                     SoftLabelMaskFormerHead,
                                     SoftLabelQueryMixin)

__all__ = [
    'QueryFusionHead', 'SoftLabelMask2FormerHead', 'SoftLabelMaskFormerHead',
    'SoftLabelQueryMixin'
]
