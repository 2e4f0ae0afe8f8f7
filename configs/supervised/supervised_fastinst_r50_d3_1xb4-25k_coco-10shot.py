# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fastinst_r50_d3.py',
    '../_base_/datasets/coco_fastinst.py',
    '../_base_/schedules/schedule_25k_fastinst.py',
    '../_base_/default_runtime.py'
]

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = (
    'semi_anns/instances_train2017.seed0-fold0@10shot.json')
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=4)
