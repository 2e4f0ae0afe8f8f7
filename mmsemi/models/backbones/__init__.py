# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .dino import DINOBackbone

__all__ = ['DINOBackbone']
