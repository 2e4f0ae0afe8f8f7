# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Semi-supervised segmentation on OpenMMLab."""
import sys

from . import compat
from .version import __version__

# The doctor must also run where this package cannot be used. Python imports
# the package first and says only in sys.argv[0] that it still looks for the
# module to run.
_is_doctor = getattr(sys, 'argv', None) and sys.argv[0] == '-m' and any(
    arg.endswith('mmsemi.doctor') for arg in sys.orig_argv)

if not _is_doctor:
    compat.setup()

__all__ = ['__version__']
