# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './unimatch-v2_dinov2-b_dpt_4xb8-39k_voc-1over16.py'

# 60 passes over the unlabelled list, 16 images a step.
max_iters = 39000
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/original-1over8.txt'
unlabeled_dataset.ann_file = 'splits/original-1over8-unlabeled.txt'
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
