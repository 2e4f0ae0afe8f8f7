# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fastinst_r50_d3_trashcan.py',
    '../_base_/datasets/trashcan_instance.py',
    '../_base_/schedules/schedule_30k_fastinst.py',
    '../_base_/default_runtime.py'
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
