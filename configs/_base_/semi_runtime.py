# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# What only a teacher-student model needs, beside default_runtime.py.
custom_hooks = [
    dict(type='mmsemi.TeacherUpdateHook'),
    dict(type='mmsemi.PseudoLabelMonitorHook'),
    dict(type='mmsemi.PseudoLabelVisualizationHook', interval=5000),
]
