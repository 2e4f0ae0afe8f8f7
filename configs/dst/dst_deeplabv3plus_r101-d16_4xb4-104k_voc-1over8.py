# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './dst_deeplabv3plus_r101-d16_4xb4-105k_voc-1over16.py'

# 80 passes over the unlabelled list, 8 images a step.
max_iters = 104000
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/original-1over8.txt'
unlabeled_dataset.ann_file = 'splits/original-1over8-unlabeled.txt'
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
