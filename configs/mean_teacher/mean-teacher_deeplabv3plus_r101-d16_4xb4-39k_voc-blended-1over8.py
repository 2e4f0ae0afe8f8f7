# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = (
    './mean-teacher_deeplabv3plus_r101-d16_cutmix_'
    '4xb4-40k_voc-blended-1over16.py')

# 34 passes over the unlabelled list, 8 images a step.
max_iters = 39338
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 1)

# The Mean Teacher that comes with CPS.
model = dict(
    conf_thr=0.,
    conf_per_pixel=True,
    mix=None,
    average_classes=True,
    use_labeled=True,
    unsup_weight=100.)

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/blended-cps-1over8.txt'
unlabeled_dataset.ann_file = 'splits/blended-cps-1over8-unlabeled.txt'
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
