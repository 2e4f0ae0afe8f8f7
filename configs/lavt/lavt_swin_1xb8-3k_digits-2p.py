# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/lavt_digits.py',
    '../_base_/datasets/digits_referring.py',
    '../_base_/schedules/schedule_3k.py',
    '../_base_/digits_referring_runtime.py'
]

optim_wrapper = dict(optimizer=dict(lr=0.001))
# Evaluated is the moving average of the weights, as a teacher is.
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='MomentumAnnealingEMA',
        momentum=0.005,
        gamma=9,
        update_buffers=True)
]
