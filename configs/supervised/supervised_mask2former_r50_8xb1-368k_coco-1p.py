# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './supervised_mask2former_r50_8xb1-368k_coco-10p.py'

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'semi_anns/instances_train2017.1@1.json'
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset]))
