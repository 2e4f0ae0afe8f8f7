# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# LAVT on 480 x 480 pixels. The other sizes override backbone and in_channels.
model = dict(
    type='mmsemi.ReferringSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(480, 480)),
    text_encoder=dict(
        type='mmsemi.BertTextEncoder',
        model='bert-base-uncased',
        # Written out, so that no network is needed to build it.
        config=dict(
            vocab_size=30522,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072),
        max_length=20,
        num_trained_layers=10,
        train_dropout=False),
    backbone=dict(
        type='mmsemi.LAVTSwin',
        text_channels=768,
        pretrain_img_size=384,
        embed_dims=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        window_size=12,
        drop_path_rate=0.3,
        # Pretrained on ImageNet-22k.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/'
            'pretrain/swin/'
            'swin_base_patch4_window12_384_22k_20220317-e5c09f74.pth')),
    decode_head=dict(
        type='mmsemi.LAVTHead',
        in_channels=[128, 256, 512, 1024],
        num_classes=2,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        loss_reduction='weights'),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
