# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# LAVT for 64-pixel scenes of digits, small enough to learn on two CPU cores:
# patches of 2 pixels, windows of 4, a text encoder of two layers. Nothing is
# pretrained, so everything learns.
model = dict(
    type='mmsemi.ReferringSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[114., 114., 114.],
        std=[60., 60., 60.],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(64, 64)),
    text_encoder=dict(
        type='mmsemi.BertTextEncoder',
        config=dict(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=16),
        # Every word of the generated expressions.
        vocab=[
            'at', 'big', 'biggest', 'blue', 'bottom', 'bottommost', 'digit',
            'eight', 'fifth', 'first', 'five', 'four', 'fourth', 'from',
            'green', 'left', 'leftmost', 'nine', 'on', 'one', 'purple', 'red',
            'right', 'rightmost', 'second', 'seven', 'six', 'small',
            'smallest', 'the', 'third', 'three', 'top', 'topmost', 'two',
            'white', 'yellow', 'zero'
        ],
        max_length=12),
    backbone=dict(
        type='mmsemi.LAVTSwin',
        text_channels=48,
        patch_size=2,
        strides=(2, 2, 2, 2),
        embed_dims=16,
        depths=(1, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        mlp_ratio=2,
        drop_path_rate=0.),
    decode_head=dict(
        type='mmsemi.LAVTHead',
        in_channels=[16, 32, 64, 128],
        channels=32,
        num_classes=2,
        norm_cfg=dict(type='BN', requires_grad=True),
        loss_reduction='weights'),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
