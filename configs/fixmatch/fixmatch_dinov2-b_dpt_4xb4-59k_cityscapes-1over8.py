# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './fixmatch_dinov2-b_dpt_4xb4-63k_cityscapes-1over16.py'

# 180 passes over the unlabelled list, 8 images a step.
max_iters = 58500
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/city-cps-1over8.txt'
unlabeled_dataset.ann_file = 'splits/city-cps-1over8-unlabeled.txt'
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
