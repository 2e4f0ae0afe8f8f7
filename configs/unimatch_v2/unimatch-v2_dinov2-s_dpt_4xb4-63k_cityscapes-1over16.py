# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './unimatch-v2_dinov2-b_dpt_4xb4-63k_cityscapes-1over16.py'

model = dict(
    segmentor=dict(
        backbone=dict(
            model_name='facebook/dinov2-small',
            config=dict(hidden_size=384, num_attention_heads=6)),
        decode_head=dict(
            in_channels=[384] * 4,
            channels=64,
            post_process_channels=[48, 96, 192, 384])))
