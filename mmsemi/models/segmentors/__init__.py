# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .referring_segmentor import ReferringSegmentor

__all__ = ['ReferringSegmentor']
