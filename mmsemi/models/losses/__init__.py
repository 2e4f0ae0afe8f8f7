# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .dense_losses import (LossNormalizer, dense_cross_entropy, full_precision,
                           normalize_loss, soft_cross_entropy)
from .ohem import OhemCrossEntropyLoss

__all__ = [
    'LossNormalizer', 'OhemCrossEntropyLoss', 'dense_cross_entropy',
    'full_precision', 'normalize_loss', 'soft_cross_entropy'
]
