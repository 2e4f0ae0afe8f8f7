# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/dinov2-b_dpt.py',
    '../_base_/datasets/semi_cityscapes.py',
    '../_base_/schedules/schedule_poly-adamw.py',
    '../_base_/semantic_runtime.py', '../_base_/semi_runtime.py'
]

# 180 passes over the unlabelled list, 8 images a step.
max_iters = 62820
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

segmentor = _base_.model
segmentor.data_preprocessor.size = (798, 798)
segmentor.decode_head.num_classes = 19
segmentor.decode_head.loss_decode = dict(
    type='mmsemi.OhemCrossEntropyLoss', thresh=0.7, min_kept=200000)
segmentor.test_cfg = dict(
    mode='slide',
    crop_size=(798, 798),
    stride=(532, 532),
    average='softmax')
model = dict(_delete_=True, type='mmsemi.FixMatch', segmentor=segmentor)
val_cfg = dict(type='mmsemi.MultiViewValLoop')

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/city-cps-1over16.txt'
unlabeled_dataset.ann_file = 'splits/city-cps-1over16-unlabeled.txt'
labeled_dataset.pipeline[3].crop_size = 798
unlabeled_dataset.pipeline[2].crop_size = 798
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=16)
