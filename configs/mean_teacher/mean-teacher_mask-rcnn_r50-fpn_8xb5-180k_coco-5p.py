# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './mean-teacher_mask-rcnn_r50-fpn_8xb5-180k_coco-10p.py'

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'semi_anns/instances_train2017.1@5.json'
unlabeled_dataset.ann_file = \
    'semi_anns/instances_train2017.1@5-unlabeled.json'
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
