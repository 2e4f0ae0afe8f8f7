# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fastinst_r50_d3_micrographs.py',
    '../_base_/datasets/micrograph_instance.py',
    '../_base_/schedules/schedule_1k_fastinst.py',
    '../_base_/default_runtime.py'
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
