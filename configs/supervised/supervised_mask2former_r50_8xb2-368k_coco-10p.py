# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# The teacher of guided distillation: 16 labelled images a step, those of rare
# classes more often.
_base_ = './supervised_mask2former_r50_8xb1-368k_coco-10p.py'

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'semi_anns/instances_train2017.1@10.json'
balanced_dataset = dict(
    type='ClassBalancedDataset', oversample_thr=10., dataset=labeled_dataset)
train_dataloader = dict(
    batch_size=2,
    sampler=dict(batch_size=2),
    dataset=dict(datasets=[balanced_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=16)
