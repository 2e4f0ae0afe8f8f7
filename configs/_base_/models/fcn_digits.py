# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# A small ResNet with a fully convolutional head on its three stages, small
# enough to learn 48-pixel scenes on two CPU cores.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[114., 114., 114.],
        std=[60., 60., 60.],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(48, 48)),
    backbone=dict(
        type='mmseg.ResNet',
        depth=18,
        base_channels=32,
        stem_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch'),
    decode_head=dict(
        type='mmseg.FCNHead',
        in_channels=[32, 64, 128],
        in_index=[0, 1, 2],
        input_transform='resize_concat',
        channels=32,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(
            type='mmseg.CrossEntropyLoss',
            use_sigmoid=False,
            avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
