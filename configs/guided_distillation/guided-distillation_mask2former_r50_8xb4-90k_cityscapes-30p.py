# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './guided-distillation_mask2former_r50_8xb4-90k_cityscapes-5p.py'

balanced_dataset = _base_.balanced_dataset
balanced_dataset.dataset.ann_file = (
    'semi_anns/'
    'instancesonly_filtered_gtFine_train.seed0-fold0@29.85.json')
train_dataloader = dict(
    dataset=dict(datasets=[balanced_dataset, _base_.unlabeled_dataset]))
model = dict(
    teacher=dict(
        checkpoint='work_dirs/'
        'supervised_mask2former_r50_8xb2-90k_cityscapes-30p/iter_90000.pth'))
