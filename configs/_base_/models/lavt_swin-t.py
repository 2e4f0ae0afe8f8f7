# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './lavt_swin-b.py'

model = dict(
    backbone=dict(
        pretrain_img_size=224,
        embed_dims=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/'
            'pretrain/swin/'
            'swin_tiny_patch4_window7_224_20220317-1cdeb081.pth')),
    decode_head=dict(in_channels=[96, 192, 384, 768]))
