# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask-rcnn_digits.py',
    '../_base_/datasets/digits_instance.py',
    '../_base_/schedules/schedule_2k.py', '../_base_/digits_runtime.py'
]

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = (
    'annotations/instances_train.seed0-fold0@10shot.json')
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset]))
