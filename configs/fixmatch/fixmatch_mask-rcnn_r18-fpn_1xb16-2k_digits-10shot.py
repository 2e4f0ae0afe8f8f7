# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask-rcnn_digits.py',
    '../_base_/datasets/semi_digits-few-shot_instance.py',
    '../_base_/schedules/schedule_2k.py', '../_base_/digits_runtime.py',
    '../_base_/semi_runtime.py'
]

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = (
    'annotations/instances_train.seed0-fold0@10shot.json')
unlabeled_dataset.ann_file = (
    'annotations/instances_train.seed0-fold0@10shot-unlabeled.json')
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))

model = dict(
    _delete_=True,
    type='mmsemi.SemiInstanceSegmentor',
    segmentor=_base_.model,
    # The student labels the weak views itself, from the first step on.
    teacher=dict(mode='student'),
    pseudo_label_pipeline=[dict(type='mmsemi.FilterByScore', score_thr=0.9)],
    # As in FixMatch, an image that nothing is sure of teaches nothing.
    keep_empty_images=False,
    hidden_label_interval=10)
val_cfg = dict(type='mmsemi.MultiViewValLoop')
custom_hooks = _base_.custom_hooks
custom_hooks[-1].update(interval=500)
