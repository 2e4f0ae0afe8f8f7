# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './guided-distillation_mask-rcnn_r50-fpn_8xb5-180k_coco-10p.py'

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'semi_anns/instances_train2017.1@2.json'
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, _base_.unlabeled_dataset]))
model = dict(
    teacher=dict(
        checkpoint='work_dirs/'
        'supervised_mask-rcnn_r50-fpn_8xb1-180k_coco-2p/iter_180000.pth'))
