# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .network_optim_wrapper_constructor import (JointOptimWrapper,
                                                NetworkOptimWrapperConstructor)
from .student_optim_wrapper_constructor import StudentOptimWrapperConstructor

__all__ = [
    'JointOptimWrapper', 'NetworkOptimWrapperConstructor',
    'StudentOptimWrapperConstructor'
]
