# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# DINOv2 ViT-B/14 with the DPT head of UniMatch V2. Configs set num_classes,
# and size to their crop, a multiple of 14.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(518, 518)),
    backbone=dict(
        type='mmsemi.DINOBackbone',
        model_name='facebook/dinov2-base',
        # Written out, so that no network is needed to build it.
        config=dict(
            model_type='dinov2',
            hidden_size=768,
            num_attention_heads=12,
            num_hidden_layers=12,
            image_size=518,
            patch_size=14),
        out_indices=(2, 5, 8, 11)),
    decode_head=dict(
        type='mmsemi.DPTHead',
        in_channels=[768] * 4,
        channels=128,
        post_process_channels=[96, 192, 384, 768],
        dropout_ratio=0,
        num_classes=21,
        align_corners=True,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
