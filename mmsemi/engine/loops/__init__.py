# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .teacher_student_val_loop import TeacherStudentValLoop

__all__ = ['TeacherStudentValLoop']
