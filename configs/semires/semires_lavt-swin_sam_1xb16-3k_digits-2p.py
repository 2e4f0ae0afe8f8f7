# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/semires_digits.py',
    '../_base_/datasets/semi_digits_referring.py',
    '../_base_/schedules/schedule_3k.py',
    '../_base_/digits_referring_runtime.py', '../_base_/semi_runtime.py'
]

# Where no proposal fits, SAM is prompted with the teacher's mask. This one has
# random weights, so that it runs without any: what it draws is rarely like the
# mask, and then not taken. For real images: model='facebook/sam-vit-huge'.
model = dict(pseudo_label_pipeline=[
    dict(type='mmsemi.RefineByProposals', strategy='cpi_u'),
    dict(
        type='mmsemi.SAMRefine',
        model='tiny-random',
        only_unmatched=True,
        min_iou=0.5),
    dict(type='mmsemi.PixelWeighting')
])

unlabeled_dataset = _base_.unlabeled_dataset
unlabeled_dataset.pipeline[-1].unsup_teacher.insert(0, _base_.proposals)
train_dataloader = dict(
    dataset=dict(datasets=[_base_.labeled_dataset, unlabeled_dataset]))
val_cfg = dict(type='mmsemi.MultiViewValLoop')
optim_wrapper = dict(optimizer=dict(lr=0.001))
custom_hooks = _base_.custom_hooks
custom_hooks[-1].update(interval=1000)
