# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './unimatch_deeplabv3plus_r50-d16_4xb4-105k_voc-1over16.py'

model = dict(
    segmentor=dict(
        backbone=dict(
            depth=101,
            init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c'))))
