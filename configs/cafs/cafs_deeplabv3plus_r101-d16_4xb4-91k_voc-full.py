# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/semi_voc.py',
    '../_base_/schedules/schedule_poly-sgd.py',
    '../_base_/semantic_runtime.py', '../_base_/semi_runtime.py'
]

# 80 passes over the unlabelled list, 8 images a step.
max_iters = 91200
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 2)

segmentor = _base_.model
segmentor.data_preprocessor.size = (321, 321)
segmentor.backbone.update(
    depth=101,
    init_cfg=dict(
        type='Pretrained', checkpoint='open-mmlab://resnet101_v1c'))
model = dict(_delete_=True, type='mmsemi.CAFS', segmentor=segmentor)
val_cfg = dict(type='mmsemi.MultiViewValLoop')
# Every 2,000 steps, on a fifth of the labelled images.
custom_hooks = _base_.custom_hooks + [
    dict(type='mmsemi.ClassThresholdHook', interval=2000)
]

labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/original-full.txt'
unlabeled_dataset.ann_file = 'splits/original-full-unlabeled.txt'
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=16)
