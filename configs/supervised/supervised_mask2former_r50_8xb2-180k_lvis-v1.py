# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask2former_r50_lvis.py',
    '../_base_/datasets/lvis_v1_instance.py',
    '../_base_/schedules/schedule_180k_cosine.py',
    '../_base_/lvis_runtime.py'
]

auto_scale_lr = dict(enable=False, base_batch_size=16)
