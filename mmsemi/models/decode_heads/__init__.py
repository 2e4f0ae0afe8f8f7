# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .dpt_head import DPTHead

__all__ = ['DPTHead']
