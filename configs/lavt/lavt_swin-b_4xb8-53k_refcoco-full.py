# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/lavt_swin-b.py', '../_base_/datasets/refcoco.py',
    '../_base_/schedules/schedule_lavt_40e.py',
    '../_base_/referring_runtime.py'
]

# 40 passes over 42,404 references, 32 a step.
max_iters = 53000
train_cfg = dict(max_iters=max_iters, val_interval=1325)
param_scheduler = dict(end=max_iters + 1)
auto_scale_lr = dict(enable=False, base_batch_size=32)

labeled_dataset = _base_.labeled_dataset
labeled_dataset.image_list = None
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    sampler=dict(batch_size=8),
    dataset=dict(datasets=[labeled_dataset]))
