# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# mmseg's UPerNet. Configs set num_classes of both heads, and size to their
# crop.
_base_ = './pspnet_r50-d8.py'

model = dict(
    backbone=dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)),
    decode_head=dict(
        type='UPerHead',
        in_channels=[256, 512, 1024, 2048],
        in_index=[0, 1, 2, 3]))
