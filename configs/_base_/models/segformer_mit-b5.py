# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './segformer_mit-b2.py'

model = dict(
    backbone=dict(
        num_layers=[3, 6, 40, 3],
        init_cfg=dict(
            checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/'
            'pretrain/segformer/mit_b5_20220624-658746d9.pth')))
