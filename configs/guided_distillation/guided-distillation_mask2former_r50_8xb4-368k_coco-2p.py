# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './guided-distillation_mask2former_r50_8xb4-368k_coco-10p.py'

balanced_dataset = _base_.balanced_dataset
balanced_dataset.dataset.ann_file = 'semi_anns/instances_train2017.1@2.json'
train_dataloader = dict(
    dataset=dict(datasets=[balanced_dataset, _base_.unlabeled_dataset]))
model = dict(
    teacher=dict(
        checkpoint='work_dirs/'
        'supervised_mask2former_r50_8xb2-368k_coco-2p/iter_368750.pth'))
