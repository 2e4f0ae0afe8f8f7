# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './cps_deeplabv3plus_r50-d16_cutmix_4xb6-40k_voc-blended-1over16.py'

model = dict(
    segmentor=dict(
        backbone=dict(
            depth=101,
            init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c'))))
