# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './supervised_dinov2-b_dpt_4xb4-34k_cityscapes-1over16.py'

# 180 times 3,000 images, 16 a step.
max_iters = 33660
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'splits/city-cps-1over8.txt'
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset]))
