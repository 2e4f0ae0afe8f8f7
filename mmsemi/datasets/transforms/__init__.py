# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .color import (ColorJitter, RandomCutout, RandomGaussianBlur,
                    RandomGrayscale, StrongColor)
from .mix import (BoxMix, ClassMix, CutMix, HalfBoxMix, box_mask, class_mask,
                  cutmix_box)
from .multi_branch import MultiBranch
from .seg_cutout import Cutout
from .seg_geometric import RandomResizeByLongSide
from .view_checks import check_source_pipeline, check_view_pipeline

__all__ = [
    'BoxMix', 'ClassMix', 'ColorJitter', 'CutMix', 'Cutout', 'HalfBoxMix',
    'MultiBranch', 'RandomCutout', 'RandomGaussianBlur', 'RandomGrayscale',
    'RandomResizeByLongSide', 'StrongColor', 'box_mask',
    'check_source_pipeline', 'check_view_pipeline', 'class_mask', 'cutmix_box'
]

if is_installed('mmdet'):
    from .formatting import PackDetInputs
    from .geometric import (RandomAffine, RandomRotate, RandomShear,
                            RandomTranslate)
    __all__ += [
        'PackDetInputs', 'RandomAffine', 'RandomRotate', 'RandomShear',
        'RandomTranslate'
    ]

if is_installed('mmseg'):
    from .seg_formatting import PackSegInputs
    __all__ += ['PackSegInputs']
