# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/schedule_poly-sgd.py', '../_base_/semantic_runtime.py'
]

# 240 times 3,000 images, 16 a step.
max_iters = 44880
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)
# UniMatch, for 8 labelled images a step: one rate for all layers.
optim_wrapper = dict(
    optimizer=dict(lr=0.005), paramwise_cfg=dict(_delete_=True))

model = _base_.model
model.data_preprocessor.size = (801, 801)
model.decode_head.num_classes = 19
model.decode_head.loss_decode = dict(
    type='mmsemi.OhemCrossEntropyLoss', thresh=0.7, min_kept=200000)
model.test_cfg = dict(
    mode='slide',
    crop_size=(801, 801),
    stride=(534, 534))

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'splits/city-cps-1over16.txt'
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(batch_size=4),
    dataset=dict(datasets=[labeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=16)
