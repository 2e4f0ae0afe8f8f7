# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './guided-distillation_mask-rcnn_r50-fpn_8xb2-24k_cityscapes-5p.py'

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = (
    'semi_anns/'
    'instancesonly_filtered_gtFine_train.seed0-fold0@29.85.json')
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, _base_.unlabeled_dataset]))
model = dict(
    teacher=dict(
        checkpoint='work_dirs/'
        'supervised_mask-rcnn_r50-fpn_8xb1-24k_cityscapes-30p/iter_24000.pth'))
