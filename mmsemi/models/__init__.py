# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .multi_branch_preprocessor import MultiBranchDataPreprocessor

__all__ = ['MultiBranchDataPreprocessor']
