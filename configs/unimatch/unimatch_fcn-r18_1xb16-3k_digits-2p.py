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
    type='mmsemi.UniMatch',
    segmentor=_base_.model,
    teacher=dict(mode='student', burn_in_steps=1200),
    pseudo_label_pipeline=[
        dict(type='mmsemi.KeepConfidentPixels', conf_thr=0.9)
    ])
val_cfg = dict(type='mmsemi.MultiViewValLoop')
# The second strong view is drawn like the first.
unlabeled_dataset = _base_.unlabeled_dataset
views = unlabeled_dataset.pipeline[-1]
views.unsup_student_2 = views.unsup_student
train_dataloader = dict(
    dataset=dict(datasets=[_base_.labeled_dataset, unlabeled_dataset]))
