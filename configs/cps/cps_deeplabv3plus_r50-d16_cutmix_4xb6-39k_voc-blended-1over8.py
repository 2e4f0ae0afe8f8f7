# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './cps_deeplabv3plus_r50-d16_cutmix_4xb6-40k_voc-blended-1over16.py'

# 34 passes over the unlabelled list, 8 images a step.
max_iters = 39338
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 1)

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/blended-cps-1over8.txt'
unlabeled_dataset.ann_file = 'splits/blended-cps-1over8-unlabeled.txt'
partner_dataset = _base_.partner_dataset
partner_dataset.ann_file = unlabeled_dataset.ann_file
train_dataloader = dict(
    dataset=dict(
        datasets=[labeled_dataset, unlabeled_dataset, partner_dataset]))
