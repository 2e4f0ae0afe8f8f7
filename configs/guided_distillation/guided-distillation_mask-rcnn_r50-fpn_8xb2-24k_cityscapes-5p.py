# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/semi_cityscapes_instance.py',
    '../_base_/schedules/schedule_24k.py',
    '../_base_/default_runtime.py', '../_base_/semi_runtime.py'
]

segmentor = _base_.model
segmentor.roi_head.bbox_head.num_classes = 8
segmentor.roi_head.mask_head.num_classes = 8
model = dict(
    _delete_=True,
    type='mmsemi.GuidedDistillation',
    segmentor=segmentor,
    teacher=dict(
        # What the config of this name in ../supervised ends with.
        checkpoint='work_dirs/'
        'supervised_mask-rcnn_r50-fpn_8xb1-24k_cityscapes-5p/iter_24000.pth',
        # The share of the training that Mask2Former burns in.
        guided_steps=4000))
# 1 labelled and 1 unlabelled image per GPU.
train_dataloader = dict(
    batch_size=2, num_workers=2, sampler=dict(batch_size=2))

val_cfg = dict(type='mmsemi.MultiViewValLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
