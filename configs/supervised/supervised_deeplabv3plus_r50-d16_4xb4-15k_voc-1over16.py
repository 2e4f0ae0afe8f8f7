# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py', '../_base_/datasets/voc.py',
    '../_base_/schedules/schedule_poly-sgd.py', '../_base_/semantic_runtime.py'
]

# 80 times 3,000 images, 16 a step.
max_iters = 14960
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

model = _base_.model
model.data_preprocessor.size = (321, 321)

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'splits/original-1over16.txt'
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(batch_size=4),
    dataset=dict(datasets=[labeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=16)
