# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/datasets/semi_coco-lsj_instance.py',
    '../_base_/schedules/schedule_368k.py',
    '../_base_/default_runtime.py', '../_base_/semi_runtime.py'
]

model = dict(
    type='mmsemi.GuidedDistillation',
    segmentor=dict(
        cfg_path='mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        # One label per query.
        panoptic_fusion_head=dict(type='mmsemi.QueryFusionHead'),
        test_cfg=dict(panoptic_on=False, instance_on=True)),
    teacher=dict(
        # What the config of this name in ../supervised ends with.
        checkpoint='work_dirs/'
        'supervised_mask2former_r50_8xb2-368k_coco-10p/iter_368750.pth',
        guided_steps=50000))

# Labelled images of rare classes come more often, and all of train2017 is
# without labels, as in the released code.
balanced_dataset = dict(
    type='ClassBalancedDataset',
    oversample_thr=10.,
    dataset=_base_.labeled_dataset)
unlabeled_dataset = _base_.unlabeled_dataset
unlabeled_dataset.ann_file = 'annotations/instances_train2017.json'
# 2 labelled and 2 unlabelled images per GPU.
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(batch_size=4),
    dataset=dict(datasets=[balanced_dataset, unlabeled_dataset]))

val_cfg = dict(type='mmsemi.MultiViewValLoop')
auto_scale_lr = dict(enable=False, base_batch_size=32)
