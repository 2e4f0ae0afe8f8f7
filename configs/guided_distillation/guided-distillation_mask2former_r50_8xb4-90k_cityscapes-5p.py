# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask2former_r50_cityscapes.py',
    '../_base_/datasets/semi_cityscapes_instance.py',
    '../_base_/schedules/schedule_90k.py',
    '../_base_/default_runtime.py', '../_base_/semi_runtime.py'
]

segmentor = _base_.model
# One label per query.
segmentor.panoptic_fusion_head.type = 'mmsemi.QueryFusionHead'
model = dict(
    _delete_=True,
    type='mmsemi.GuidedDistillation',
    segmentor=segmentor,
    teacher=dict(
        # What the config of this name in ../supervised ends with.
        checkpoint='work_dirs/'
        'supervised_mask2former_r50_8xb2-90k_cityscapes-5p/iter_90000.pth',
        guided_steps=15000))

# Labelled images of rare classes come more often, as in the released code.
balanced_dataset = dict(
    type='ClassBalancedDataset',
    oversample_thr=10.,
    dataset=_base_.labeled_dataset)
train_dataloader = dict(
    dataset=dict(datasets=[balanced_dataset, _base_.unlabeled_dataset]))

val_cfg = dict(type='mmsemi.MultiViewValLoop')
auto_scale_lr = dict(enable=False, base_batch_size=32)
