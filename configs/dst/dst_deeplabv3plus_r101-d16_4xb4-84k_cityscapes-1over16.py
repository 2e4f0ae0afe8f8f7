# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/semi_cityscapes.py',
    '../_base_/schedules/schedule_poly-sgd.py',
    '../_base_/semantic_runtime.py', '../_base_/semi_runtime.py'
]

# 240 passes over the unlabelled list, 8 images a step.
max_iters = 83760
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)
# UniMatch, for 8 labelled images a step: one rate for all layers.
optim_wrapper = dict(
    optimizer=dict(lr=0.005), paramwise_cfg=dict(_delete_=True))

segmentor = _base_.model
segmentor.data_preprocessor.size = (801, 801)
segmentor.backbone.update(
    depth=101,
    init_cfg=dict(
        type='Pretrained', checkpoint='open-mmlab://resnet101_v1c'))
segmentor.decode_head.num_classes = 19
segmentor.decode_head.loss_decode = dict(
    type='mmsemi.OhemCrossEntropyLoss', thresh=0.7, min_kept=200000)
segmentor.test_cfg = dict(
    mode='slide',
    crop_size=(801, 801),
    stride=(534, 534),
    border='truncate',
    average='softmax')
model = dict(_delete_=True, type='mmsemi.DST', segmentor=segmentor)

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/city-cps-1over16.txt'
unlabeled_dataset.ann_file = 'splits/city-cps-1over16-unlabeled.txt'
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=16)
