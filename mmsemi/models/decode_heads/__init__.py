# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .dpt_head import DPTHead
from .lavt_head import LAVTHead
from .semantic_seg_head import (SemanticSegMixin, semantic_head_class,
                                semantic_seg_head)

__all__ = [
    'DPTHead', 'LAVTHead', 'SemanticSegMixin', 'semantic_head_class',
    'semantic_seg_head'
]
