# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './supervised_dinov2-b_dpt_4xb8-6k_voc-1over16.py'

# 60 times 3,000 images, 32 a step.
max_iters = 5580
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'splits/original-1over8.txt'
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset]))
