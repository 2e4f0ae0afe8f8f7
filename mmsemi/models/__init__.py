# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .backbones import DINOBackbone
from .losses import OhemCrossEntropyLoss
from .multi_branch_preprocessor import MultiBranchDataPreprocessor

__all__ = [
    'DINOBackbone', 'MultiBranchDataPreprocessor', 'OhemCrossEntropyLoss'
]

if is_installed('mmseg'):
    from .decode_heads import DPTHead
    __all__ += ['DPTHead']
