# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './supervised_deeplabv3plus_r50-d16_4xb4-45k_cityscapes-1over16.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c')))
