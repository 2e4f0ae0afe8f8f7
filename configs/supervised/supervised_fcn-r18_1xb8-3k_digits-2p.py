# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fcn_digits.py',
    '../_base_/datasets/digits_semantic.py',
    '../_base_/schedules/schedule_3k.py',
    '../_base_/digits_semantic_runtime.py'
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
