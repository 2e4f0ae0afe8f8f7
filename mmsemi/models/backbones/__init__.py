# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .dino import DINOBackbone

__all__ = ['DINOBackbone']

if is_installed('mmseg'):
    from .lavt_swin import LAVTSwin
    __all__ += ['LAVTSwin']
