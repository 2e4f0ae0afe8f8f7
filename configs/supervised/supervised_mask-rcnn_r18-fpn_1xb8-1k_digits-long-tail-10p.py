# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask-rcnn_digits.py',
    '../_base_/datasets/digits-long-tail_instance.py',
    '../_base_/schedules/schedule_1k.py',
    '../_base_/digits-long-tail_runtime.py'
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
