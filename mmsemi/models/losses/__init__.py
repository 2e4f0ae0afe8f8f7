# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .class_weighted_loss import ClassWeightedCrossEntropyLoss
from .dense_losses import (LossNormalizer, dense_cross_entropy, full_precision,
                           normalize_loss, soft_cross_entropy)
from .federated_loss import FederatedLoss
from .ohem import OhemCrossEntropyLoss
from .soft_cross_entropy_loss import SoftCrossEntropyLoss

__all__ = [
    'ClassWeightedCrossEntropyLoss', 'FederatedLoss', 'LossNormalizer',
    'OhemCrossEntropyLoss', 'SoftCrossEntropyLoss', 'dense_cross_entropy',
    'full_precision', 'normalize_loss', 'soft_cross_entropy'
]
