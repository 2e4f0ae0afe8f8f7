# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .student_optim_wrapper_constructor import StudentOptimWrapperConstructor

__all__ = ['StudentOptimWrapperConstructor']
