# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './cps_deeplabv3plus_r50-d16_cutmix_8xb3-45k_cityscapes-1over16.py'

# 137 passes over the unlabelled list, 8 images a step.
max_iters = 44525
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 1)

# Without CutMix, labelled images are learned from each other too, and
# there is no partner.
model = dict(cps_weight=6.0, mix=None)
labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/city-cps-1over8.txt'
unlabeled_dataset.ann_file = 'splits/city-cps-1over8-unlabeled.txt'
train_dataloader = dict(
    batch_size=2,
    sampler=dict(batch_size=2, source_ratio=[1, 1]),
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=16)
