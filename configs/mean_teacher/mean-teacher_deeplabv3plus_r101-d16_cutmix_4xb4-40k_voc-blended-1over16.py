# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/semi_voc.py',
    '../_base_/schedules/schedule_poly-sgd-cps.py',
    '../_base_/semantic_runtime.py', '../_base_/semi_runtime.py'
]

# 32 passes over the unlabelled list, 8 images a step.
max_iters = 39680
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 1)

segmentor = _base_.model
segmentor.data_preprocessor.size = (512, 512)
segmentor.backbone.update(
    depth=101,
    init_cfg=dict(
        type='Pretrained', checkpoint='open-mmlab://resnet101_v1c'))
segmentor.test_cfg = dict(
    mode='slide',
    crop_size=(512, 512),
    stride=(342, 342))
model = dict(
    _delete_=True,
    type='mmsemi.MeanTeacher',
    segmentor=segmentor,
    # French et al.: the share of confident pixels weights the whole loss.
    conf_thr=0.97,
    conf_per_pixel=False,
    mix=dict(type='mmsemi.BoxMix', num_boxes=1, area_range=(0.5, 0.5)),
    teacher=dict(momentum=0.01, warm_up_gamma=0))
val_cfg = dict(type='mmsemi.MultiViewValLoop')

# Six sizes, and no colours.
resize = dict(
    type='RandomChoice',
    transforms=[[dict(type='Resize', scale_factor=factor)]
                for factor in (0.5, 0.75, 1.0, 1.5, 1.75, 2.0)])
crop = dict(type='RandomCrop', crop_size=512)
labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/blended-cps-1over16.txt'
unlabeled_dataset.ann_file = 'splits/blended-cps-1over16-unlabeled.txt'
labeled_dataset.pipeline[2:4] = [resize, crop]
unlabeled_dataset.pipeline[1:3] = [resize, crop]
views = unlabeled_dataset.pipeline[-1]
views.unsup_student = views.unsup_teacher
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=16)
