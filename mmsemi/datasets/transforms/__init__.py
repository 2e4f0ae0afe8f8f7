# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .color import (ColorJitter, RandomCutout, RandomGaussianBlur,
                    RandomGrayscale, StrongColor)

__all__ = [
    'ColorJitter', 'RandomCutout', 'RandomGaussianBlur', 'RandomGrayscale',
    'StrongColor'
]

if is_installed('mmdet'):
    from .formatting import PackDetInputs
    from .geometric import (RandomAffine, RandomRotate, RandomShear,
                            RandomTranslate)
    from .multi_branch import MultiBranch
    from .view_checks import check_view_pipeline
    __all__ += [
        'MultiBranch', 'PackDetInputs', 'RandomAffine', 'RandomRotate',
        'RandomShear', 'RandomTranslate', 'check_view_pipeline'
    ]
