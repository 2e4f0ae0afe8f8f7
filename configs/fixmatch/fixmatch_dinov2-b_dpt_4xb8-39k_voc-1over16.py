# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/dinov2-b_dpt.py', '../_base_/datasets/semi_voc.py',
    '../_base_/schedules/schedule_poly-adamw.py',
    '../_base_/semantic_runtime.py', '../_base_/semi_runtime.py'
]

# 60 passes over the unlabelled list, 16 images a step.
max_iters = 39300
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

segmentor = _base_.model
segmentor.data_preprocessor.size = (518, 518)
model = dict(_delete_=True, type='mmsemi.FixMatch', segmentor=segmentor)
val_cfg = dict(type='mmsemi.MultiViewValLoop')

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/original-1over16.txt'
unlabeled_dataset.ann_file = 'splits/original-1over16-unlabeled.txt'
labeled_dataset.pipeline[3].crop_size = 518
unlabeled_dataset.pipeline[2].crop_size = 518
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    sampler=dict(batch_size=8),
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=32)
