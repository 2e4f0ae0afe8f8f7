# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/semi_voc.py',
    '../_base_/schedules/schedule_poly-sgd-cps.py',
    '../_base_/semantic_runtime.py'
]

# 32 passes over the unlabelled list, 8 images a step.
max_iters = 39680
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(end=max_iters + 1)
# On 4 GPUs the released code divides its gradients by 4, and multiplies the
# rate, and with it the weight decay: these are the effective values.
optim_wrapper = dict(
    optimizer=dict(lr=0.0025, weight_decay=0.0004))

segmentor = _base_.model
segmentor.data_preprocessor.size = (512, 512)
segmentor.backbone.multi_grid = (2, 4, 8)
segmentor.test_cfg = dict(
    mode='slide',
    crop_size=(512, 512),
    stride=(342, 342))
model = dict(
    _delete_=True,
    type='mmsemi.CPS',
    segmentor=segmentor,
    cps_weight=1.0,
    mix=dict(type='mmsemi.BoxMix'),
    joint_forward=False)
val_cfg = dict(type='mmsemi.MultiViewValLoop')

# Six sizes, and no colours: both unlabelled views are the weak one.
resize = dict(
    type='RandomChoice',
    transforms=[[dict(type='Resize', scale_factor=factor)]
                for factor in (0.5, 0.75, 1.0, 1.5, 1.75, 2.0)])
crop = dict(type='RandomCrop', crop_size=512)
weak = [dict(type='mmsemi.PackSegInputs')]
labeled_dataset = _base_.labeled_dataset
unlabeled_dataset = _base_.unlabeled_dataset
labeled_dataset.ann_file = 'splits/blended-cps-1over16.txt'
unlabeled_dataset.ann_file = 'splits/blended-cps-1over16-unlabeled.txt'
labeled_dataset.pipeline[2:4] = [resize, crop]
unlabeled_dataset.pipeline[1:3] = [resize, crop]
branch_field = ['sup', 'unsup_teacher', 'unsup_partner_teacher']
labeled_dataset.pipeline[-1].branch_field = branch_field
unlabeled_dataset.pipeline[-1] = dict(
    type='mmsemi.MultiBranch',
    branch_field=branch_field,
    unsup_teacher=weak)
# The partners of CutMix: the same images in an order of their own. The
# released code takes another crop of the same image, which is
# sampler=dict(tied_sources={2: 1}).
partner_dataset = dict(
    unlabeled_dataset,
    pipeline=unlabeled_dataset.pipeline[:-1] + [
        dict(
            type='mmsemi.MultiBranch',
            branch_field=branch_field,
            unsup_partner_teacher=weak)
    ])
train_dataloader = dict(
    batch_size=6,
    num_workers=6,
    sampler=dict(batch_size=6, source_ratio=[1, 1, 1]),
    dataset=dict(
        datasets=[labeled_dataset, unlabeled_dataset, partner_dataset]))
auto_scale_lr = dict(enable=False, base_batch_size=24)
