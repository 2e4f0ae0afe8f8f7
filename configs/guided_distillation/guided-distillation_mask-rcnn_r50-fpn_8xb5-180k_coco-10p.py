# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/datasets/semi_coco_instance.py',
    '../_base_/schedules/schedule_180k.py',
    '../_base_/default_runtime.py', '../_base_/semi_runtime.py'
]

model = dict(
    type='mmsemi.GuidedDistillation',
    segmentor='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    teacher=dict(
        # What the config of this name in ../supervised ends with.
        checkpoint='work_dirs/'
        'supervised_mask-rcnn_r50-fpn_8xb1-180k_coco-10p/iter_180000.pth',
        # The share of the training that Mask2Former burns in.
        guided_steps=25000))

unlabeled_dataset = _base_.unlabeled_dataset
unlabeled_dataset.ann_file = 'annotations/instances_train2017.json'
train_dataloader = dict(
    dataset=dict(datasets=[_base_.labeled_dataset, unlabeled_dataset]))

val_cfg = dict(type='mmsemi.MultiViewValLoop')
auto_scale_lr = dict(enable=False, base_batch_size=40)
