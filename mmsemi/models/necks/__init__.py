# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .semantic_neck import SemanticNeck

__all__ = ['SemanticNeck']
