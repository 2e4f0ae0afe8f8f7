# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fastinst_digits.py',
    '../_base_/datasets/digits_instance.py',
    '../_base_/schedules/schedule_2k.py', '../_base_/digits_runtime.py'
]

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = (
    'annotations/instances_train.seed0-fold0@10shot.json')
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset]))

# FastInst's optimizer, at a rate for training from nothing.
optim_wrapper = dict(
    optimizer=dict(lr=0.002),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        custom_keys=dict(aux_query=dict(decay_mult=0.))),
    clip_grad=None)
