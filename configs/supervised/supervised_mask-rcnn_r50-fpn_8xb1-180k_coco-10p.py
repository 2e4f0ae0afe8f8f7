# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_180k.py', '../_base_/default_runtime.py'
]
auto_scale_lr = dict(enable=False, base_batch_size=8)
