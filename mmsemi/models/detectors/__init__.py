# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .fastinst import FastInst

__all__ = ['FastInst']
