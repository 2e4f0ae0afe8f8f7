# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/solov2_digits.py',
    '../_base_/datasets/semi_digits_instance.py',
    '../_base_/schedules/schedule_2k.py', '../_base_/digits_runtime.py',
    '../_base_/semi_runtime.py'
]

# With 40 labelled scenes the teacher finds nearly every digit and confuses
# their classes. Few pseudo-labels that are right teach more than many: see the
# README for what precision does.
model = dict(
    _delete_=True,
    type='mmsemi.SemiInstanceSegmentor',
    segmentor=_base_.model,
    teacher=dict(
        momentum=0.005,
        warm_up_gamma=9,
        burn_in_steps=600,
        average_burn_in=True),
    pseudo_label_pipeline=[
        dict(type='mmsemi.FilterByScore', score_thr=0.15),
        dict(type='mmsemi.RemoveDuplicates', iou_thr=0.5),
        dict(
            type='mmsemi.SkipUncertainImages',
            low_thr=0.15,
            high_thr=0.5,
            skip_empty=True)
    ],
    unsup_weight=dict(weight=2.0, ramp='linear', ramp_steps=200),
    hidden_label_interval=10)
val_cfg = dict(type='mmsemi.MultiViewValLoop')
custom_hooks = _base_.custom_hooks
custom_hooks[-1].update(interval=1000)
