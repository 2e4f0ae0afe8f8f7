# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .location_cost import LocationCost, cells_in_masks, points_in_masks
from .soft_classification_cost import SoftClassificationCost

__all__ = [
    'LocationCost', 'SoftClassificationCost', 'cells_in_masks',
    'points_in_masks'
]
