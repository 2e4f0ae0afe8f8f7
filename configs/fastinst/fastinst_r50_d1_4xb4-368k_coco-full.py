# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fastinst_r50_d1.py',
    '../_base_/datasets/coco-full_fastinst.py',
    '../_base_/schedules/schedule_368k_fastinst.py',
    '../_base_/default_runtime.py'
]

# A single layer goes with smaller pictures in tests.
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (777, 576)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(enable=False, base_batch_size=16)
