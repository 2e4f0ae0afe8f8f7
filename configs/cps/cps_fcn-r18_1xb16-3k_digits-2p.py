# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fcn_digits.py',
    '../_base_/datasets/semi_digits_semantic.py',
    '../_base_/schedules/schedule_3k.py',
    '../_base_/digits_semantic_runtime.py'
]

model = dict(
    _delete_=True,
    type='mmsemi.CPS',
    segmentor=_base_.model,
    cps_weight=dict(weight=1., begin=1200),
    # Without pretraining, labels of uncertain pixels teach the background.
    pseudo_label_pipeline=[
        dict(type='mmsemi.KeepConfidentPixels', conf_thr=0.9)
    ],
    student_view='unsup_student',
    joint_forward=False,
    label_in_train_mode=False)
val_cfg = dict(type='mmsemi.MultiViewValLoop')
