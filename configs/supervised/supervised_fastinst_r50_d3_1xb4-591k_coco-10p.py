# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fastinst_r50_d3.py',
    '../_base_/datasets/coco_fastinst.py',
    '../_base_/schedules/schedule_591k_fastinst.py',
    '../_base_/default_runtime.py'
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
