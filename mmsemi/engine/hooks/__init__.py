# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .calibration_hook import CalibrationHook
from .class_prototype_hook import ClassPrototypeHook
from .iter_seed_hook import IterSeedHook
from .pseudo_label_monitor_hook import PseudoLabelMonitorHook
from .pseudo_label_visualization_hook import PseudoLabelVisualizationHook
from .teacher_update_hook import TeacherUpdateHook
from .training_check_hook import TrainingCheckHook, check_training

__all__ = [
    'CalibrationHook', 'ClassPrototypeHook', 'IterSeedHook',
    'PseudoLabelMonitorHook',
    'PseudoLabelVisualizationHook', 'TeacherUpdateHook', 'TrainingCheckHook',
    'check_training'
]

if is_installed('mmseg'):
    from .class_threshold_hook import ClassThresholdHook
    __all__ += ['ClassThresholdHook']
