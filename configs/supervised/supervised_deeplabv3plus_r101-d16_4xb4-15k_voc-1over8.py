# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './supervised_deeplabv3plus_r50-d16_4xb4-15k_voc-1over16.py'

# 80 times 3,000 images, 16 a step.
max_iters = 14960
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c')))

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'splits/original-1over8.txt'
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset]))
