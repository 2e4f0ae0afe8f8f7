# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './supervised_mask2former_r50_8xb2-90k_cityscapes-5p.py'

balanced_dataset = _base_.balanced_dataset
balanced_dataset.dataset.ann_file = (
    'semi_anns/'
    'instancesonly_filtered_gtFine_train.seed0-fold0@9.95.json')
train_dataloader = dict(dataset=dict(datasets=[balanced_dataset]))
