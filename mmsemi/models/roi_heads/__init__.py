# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .semantic_bbox_heads import (SemanticBBoxMixin, SemanticShared2FCBBoxHead,
                                  SemanticShared4Conv1FCBBoxHead,
                                  SemanticSoftLabelShared2FCBBoxHead)
from .soft_label_bbox_heads import (SoftLabelBBoxMixin,
                                    SoftLabelShared2FCBBoxHead,
                                    SoftLabelShared4Conv1FCBBoxHead)
from .soft_label_roi_head import SoftLabelRoIHead

__all__ = [
    'SemanticBBoxMixin', 'SemanticShared2FCBBoxHead',
    'SemanticShared4Conv1FCBBoxHead', 'SemanticSoftLabelShared2FCBBoxHead',
    'SoftLabelBBoxMixin', 'SoftLabelRoIHead', 'SoftLabelShared2FCBBoxHead',
    'SoftLabelShared4Conv1FCBBoxHead'
]
