# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .multi_view_model import MultiViewModel, scale_losses
from .segmentor_config import load_segmentor_config
from .teacher_settings import TeacherSettings
from .teacher_student import TeacherStudent
from .weight_schedule import WeightSchedule

__all__ = [
    'MultiViewModel', 'TeacherSettings', 'TeacherStudent', 'WeightSchedule',
    'load_segmentor_config', 'scale_losses'
]

if is_installed('mmdet'):
    from .guided_distillation import GuidedDistillation
    from .semi_instance_segmentor import SemiInstanceSegmentor
    from .seminst import SemInst
    __all__ += ['GuidedDistillation', 'SemInst', 'SemiInstanceSegmentor']

if is_installed('mmseg'):
    from .cafs import CAFS
    from .cps import CPS
    from .dst import DST
    from .fixmatch import FixMatch
    from .mean_teacher import MeanTeacher
    from .semi_semantic_segmentor import SemiSemanticSegmentor
    from .semires import SemiRES
    from .uda import UDA
    from .unimatch import UniMatch, UniMatchV2
    __all__ += [
        'CAFS', 'CPS', 'DST', 'FixMatch', 'MeanTeacher',
        'SemiRES', 'SemiSemanticSegmentor', 'UDA', 'UniMatch', 'UniMatchV2'
    ]
