# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .digits import make_digits
from .multi_source import MultiSourceDataset
from .samplers import MultiSourceSampler, SeededIndex, check_batch_size
from .splits import (check_coco, check_no_leak, load_coco, split_coco,
                     split_coco_k_shot, split_stem, write_split)
from .unlabeled import UnlabeledImageDataset

__all__ = [
    'MultiSourceDataset', 'MultiSourceSampler', 'SeededIndex',
    'UnlabeledImageDataset', 'check_batch_size', 'check_coco',
    'check_no_leak', 'load_coco', 'make_digits', 'split_coco',
    'split_coco_k_shot', 'split_stem', 'write_split'
]

if is_installed('mmdet'):
    from .digits_instance import DigitsInstanceDataset
    __all__ += ['DigitsInstanceDataset']
