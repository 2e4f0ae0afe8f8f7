# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .soft_classification_cost import SoftClassificationCost

__all__ = ['SoftClassificationCost']
