# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .color import (ColorJitter, RandomCutout, RandomGaussianBlur,
                    RandomGrayscale, StrongColor)
from .mask_proposals import LoadMaskProposals
from .mix import (BoxMix, ClassMix, CutMix, HalfBoxMix, box_mask, class_mask,
                  cutmix_box)
from .multi_branch import MultiBranch
from .referring import (FlipWithWords, LoadReferringMask, ResizeTo,
                        decode_mask, mirror_sentence)
from .seg_cutout import Cutout
from .seg_geometric import RandomResizeByLongSide
from .view_checks import check_source_pipeline, check_view_pipeline

__all__ = [
    'BoxMix', 'ClassMix', 'ColorJitter', 'CutMix', 'Cutout', 'FlipWithWords',
    'HalfBoxMix', 'LoadMaskProposals', 'LoadReferringMask', 'MultiBranch',
    'RandomCutout', 'RandomGaussianBlur', 'RandomGrayscale',
    'RandomResizeByLongSide', 'ResizeTo', 'StrongColor', 'box_mask',
    'check_source_pipeline', 'check_view_pipeline', 'class_mask', 'cutmix_box',
    'decode_mask', 'mirror_sentence'
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
