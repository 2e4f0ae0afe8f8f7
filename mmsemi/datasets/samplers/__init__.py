# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .multi_source_sampler import (MultiSourceSampler, SeededIndex,
                                   check_batch_size)

__all__ = ['MultiSourceSampler', 'SeededIndex', 'check_batch_size']
