# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fcn_digits.py',
    '../_base_/datasets/semi_digits_semantic.py',
    '../_base_/schedules/schedule_3k.py',
    '../_base_/digits_semantic_runtime.py',
    '../_base_/semi_runtime.py'
]

model = dict(
    _delete_=True,
    type='mmsemi.CAFS',
    segmentor=_base_.model,
    teacher=dict(
        momentum=0.005,
        warm_up_gamma=9,
        burn_in_steps=1200,
        average_burn_in=True))
val_cfg = dict(type='mmsemi.MultiViewValLoop')
custom_hooks = _base_.custom_hooks + [
    # 4 of the 40 labelled scenes, only until thresholds are measured: with
    # few labels none can be spared. So few pixels tell little of a class;
    # most keep the default.
    dict(
        type='mmsemi.ClassThresholdHook',
        interval=100,
        release_at=1300,
        held_out_share=0.1,
        min_pixels=200,
        default=0.9,
        limits=(0.85, 0.95),
        momentum=0.5)
]
