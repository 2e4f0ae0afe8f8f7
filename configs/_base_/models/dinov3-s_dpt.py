# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# DINOv3 ViT-S/16. Its weights are under Meta's own licence, which has to be
# accepted on the hub before they can be fetched. The crop is a multiple of 16.
_base_ = './dinov2-s_dpt.py'

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        model_name='facebook/dinov3-vits16-pretrain-lvd1689m',
        config=dict(
            _delete_=True,
            model_type='dinov3_vit',
            hidden_size=384,
            intermediate_size=1536,
            num_attention_heads=6,
            num_hidden_layers=12,
            num_register_tokens=4,
            patch_size=16)))
