# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .segmentor_config import load_segmentor_config
from .teacher_settings import TeacherSettings
from .teacher_student import TeacherStudent, scale_losses
from .weight_schedule import WeightSchedule

__all__ = [
    'TeacherSettings', 'TeacherStudent', 'WeightSchedule',
    'load_segmentor_config', 'scale_losses'
]

if is_installed('mmdet'):
    from .semi_instance_segmentor import SemiInstanceSegmentor
    __all__ += ['SemiInstanceSegmentor']
