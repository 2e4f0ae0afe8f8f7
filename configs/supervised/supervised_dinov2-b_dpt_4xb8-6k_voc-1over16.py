# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/dinov2-b_dpt.py', '../_base_/datasets/voc.py',
    '../_base_/schedules/schedule_poly-adamw.py',
    '../_base_/semantic_runtime.py'
]

# 60 times 3,000 images, 32 a step.
max_iters = 5580
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

model = _base_.model
model.data_preprocessor.size = (518, 518)

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'splits/original-1over16.txt'
labeled_dataset.pipeline[3].crop_size = 518
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    sampler=dict(batch_size=8),
    dataset=dict(datasets=[labeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=32)
