# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from .multi_view_val_loop import MultiViewValLoop

__all__ = ['MultiViewValLoop']

if is_installed('mmdet'):
    from .two_stage_loop import TwoStageTrainLoop
    __all__ += ['TwoStageTrainLoop']

if is_installed('mmseg'):
    from .iterative_self_training_loop import IterativeSelfTrainingLoop
    from .self_training_loop import SelfTrainingLoop
    __all__ += ['IterativeSelfTrainingLoop', 'SelfTrainingLoop']
