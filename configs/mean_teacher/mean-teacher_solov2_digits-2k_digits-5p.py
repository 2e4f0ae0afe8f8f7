# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/solov2_digits.py',
    '../_base_/datasets/semi_digits_instance.py',
    '../_base_/schedules/schedule_digits_2k.py',
    '../_base_/digits_runtime.py', '../_base_/semi_runtime.py'
]
model = dict(
    _delete_=True,
    type='mmsemi.SemiInstanceSegmentor',
    segmentor=_base_.model,
    teacher=dict(momentum=0.005, burn_in_steps=600, average_burn_in=True),
    unsup_weight=dict(weight=1.0, ramp='linear', ramp_steps=200),
    pseudo_label_pipeline=[
        dict(type='mmsemi.RemoveDuplicates', iou_thr=0.5),
        dict(type='mmsemi.SkipUncertainImages', low_thr=0.1, high_thr=0.4),
        dict(type='mmsemi.FilterByScore', score_thr=0.4),
        dict(type='mmsemi.FilterByArea', min_area=16)
    ],
    hidden_label_interval=10)
val_cfg = dict(type='mmsemi.TeacherStudentValLoop')
