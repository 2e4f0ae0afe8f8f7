# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/datasets/semi_coco_instance.py',
    '../_base_/schedules/schedule_180k.py',
    '../_base_/default_runtime.py', '../_base_/semi_runtime.py'
]

# Threshold, momentum and weight as in Unbiased Teacher.
model = dict(
    type='mmsemi.SemiInstanceSegmentor',
    segmentor='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    # The same number of labelled images as in 2,000 steps of 32.
    teacher=dict(momentum=0.0004, burn_in_steps=8000),
    pseudo_label_pipeline=[
        dict(type='mmsemi.FilterByScore', score_thr=0.7),
        dict(type='mmsemi.FilterByArea', min_area=16)
    ],
    unsup_weight=4.0)

val_cfg = dict(type='mmsemi.MultiViewValLoop')
auto_scale_lr = dict(enable=False, base_batch_size=40)
