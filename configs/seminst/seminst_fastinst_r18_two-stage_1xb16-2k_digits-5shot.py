# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fastinst_digits.py',
    '../_base_/datasets/semi_digits-few-shot_instance.py',
    '../_base_/schedules/schedule_2k_two-stage.py',
    '../_base_/digits_runtime.py', '../_base_/semi_runtime.py'
]

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'annotations/instances_train.seed0-fold0@5shot.json'
unlabeled_dataset.ann_file = (
    'annotations/instances_train.seed0-fold0@5shot-unlabeled.json')
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))

model = dict(
    _delete_=True,
    type='mmsemi.SemInst',
    segmentor=_base_.model,
    # Masks of digits are small: none is filtered by its size.
    pseudo_label_pipeline=[dict(type='mmsemi.FilterByScore', score_thr=0.9)],
    hidden_label_interval=10)
val_cfg = dict(type='mmsemi.MultiViewValLoop')
custom_hooks = _base_.custom_hooks
custom_hooks[-1].update(interval=500)

# FastInst's optimizer, at a rate for training from nothing.
optim_wrapper = dict(
    optimizer=dict(lr=0.002),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        custom_keys=dict(aux_query=dict(decay_mult=0.))),
    clip_grad=None)
