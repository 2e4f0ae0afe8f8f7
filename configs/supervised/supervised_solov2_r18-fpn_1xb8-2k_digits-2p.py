# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/solov2_digits.py',
    '../_base_/datasets/digits_instance.py',
    '../_base_/schedules/schedule_2k.py',
    '../_base_/digits_runtime.py'
]
# Evaluated is the moving average of the weights, as a teacher is.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='MomentumAnnealingEMA',
        momentum=0.005,
        gamma=9,
        update_buffers=True)
]
