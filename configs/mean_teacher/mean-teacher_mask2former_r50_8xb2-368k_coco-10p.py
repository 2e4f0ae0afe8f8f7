# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/datasets/semi_coco-lsj_instance.py',
    '../_base_/schedules/schedule_368k.py',
    '../_base_/default_runtime.py', '../_base_/semi_runtime.py'
]

# Threshold, area, momentum and weight as in Guided Distillation.
model = dict(
    type='mmsemi.SemiInstanceSegmentor',
    segmentor=dict(
        cfg_path='mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        test_cfg=dict(panoptic_on=False, instance_on=True)),
    teacher=dict(momentum=0.0004, burn_in_steps=20000),
    pseudo_label_pipeline=[
        dict(type='mmsemi.FilterByScore', score_thr=0.7),
        # All 100 queries answer, some with an empty mask.
        dict(type='mmsemi.FilterByArea', min_area=80)
    ],
    unsup_weight=2.0)

val_cfg = dict(type='mmsemi.MultiViewValLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
