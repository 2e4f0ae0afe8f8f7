# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask-rcnn_r50-fpn_lvis.py',
    '../_base_/datasets/lvis_v1_instance.py',
    '../_base_/schedules/schedule_180k_cosine.py',
    '../_base_/lvis_runtime.py'
]

# SGD for 16 labelled images a step, as in mmdet.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001))

auto_scale_lr = dict(enable=False, base_batch_size=16)
