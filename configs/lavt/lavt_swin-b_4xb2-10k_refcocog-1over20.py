# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/lavt_swin-b.py', '../_base_/datasets/refcoco.py',
    '../_base_/schedules/schedule_lavt_40e.py',
    '../_base_/referring_runtime.py'
]

# 40 passes over about 2145 labelled references, 8 a step.
max_iters = 10725
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10)
param_scheduler = dict(end=max_iters + 1)
auto_scale_lr = dict(enable=False, base_batch_size=8)

ann_file = 'refer/refcocog-umd.json'
labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = ann_file
labeled_dataset.image_list = 'refer/splits/refcocog-umd.semires@5.txt'
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset]))
val_dataloader = dict(dataset=dict(ann_file=ann_file))
test_dataloader = val_dataloader
