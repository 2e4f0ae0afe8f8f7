# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Semi-supervised segmentation on OpenMMLab."""
from . import compat
from .version import __version__

compat.setup()

__all__ = ['__version__']
