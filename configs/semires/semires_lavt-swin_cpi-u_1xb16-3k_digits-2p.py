# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/semires_digits.py',
    '../_base_/datasets/semi_digits_referring.py',
    '../_base_/schedules/schedule_3k.py',
    '../_base_/digits_referring_runtime.py', '../_base_/semi_runtime.py'
]

# All proposals that cover the mask, and no weights of pixels.
model = dict(pseudo_label_pipeline=[
    dict(type='mmsemi.RefineByProposals', strategy='cpi_u')
])

unlabeled_dataset = _base_.unlabeled_dataset
unlabeled_dataset.pipeline[-1].unsup_teacher.insert(0, _base_.proposals)
train_dataloader = dict(
    dataset=dict(datasets=[_base_.labeled_dataset, unlabeled_dataset]))
val_cfg = dict(type='mmsemi.MultiViewValLoop')
optim_wrapper = dict(optimizer=dict(lr=0.001))
custom_hooks = _base_.custom_hooks
custom_hooks[-1].update(interval=1000)
