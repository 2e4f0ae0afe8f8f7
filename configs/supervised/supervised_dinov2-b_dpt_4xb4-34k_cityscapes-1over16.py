# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/dinov2-b_dpt.py', '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/schedule_poly-adamw.py',
    '../_base_/semantic_runtime.py'
]

# 180 times 3,000 images, 16 a step.
max_iters = 33660
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

model = _base_.model
model.data_preprocessor.size = (798, 798)
model.decode_head.num_classes = 19
model.decode_head.loss_decode = dict(
    type='mmsemi.OhemCrossEntropyLoss', thresh=0.7, min_kept=200000)
model.test_cfg = dict(
    mode='slide',
    crop_size=(798, 798),
    stride=(532, 532))

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'splits/city-cps-1over16.txt'
labeled_dataset.pipeline[3].crop_size = 798
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(batch_size=4),
    dataset=dict(datasets=[labeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=16)
