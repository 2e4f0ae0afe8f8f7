# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask2former_r50_cityscapes.py',
    '../_base_/datasets/cityscapes_instance.py',
    '../_base_/schedules/schedule_90k.py', '../_base_/default_runtime.py'
]

# The teacher of guided distillation: 16 labelled images a step, those of rare
# classes more often.
balanced_dataset = dict(
    type='ClassBalancedDataset',
    oversample_thr=10.,
    dataset=_base_.labeled_dataset)
train_dataloader = dict(dataset=dict(datasets=[balanced_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=16)
