# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# FastInst-D3 on ResNet-50, for the instances of COCO.
num_classes = 80
attention = dict(embed_dims=256, num_heads=8, attn_drop=0.0, batch_first=True)
# Costs that queries and the cells they come from share.
match_class = dict(type='ClassificationCost', weight=2.0)
match_location = dict(type='mmsemi.LocationCost', weight=1000.0)
model = dict(
    type='mmsemi.FastInst',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
        mask_pad_value=0,
        pad_seg=False),
    # Batch statistics and their scales stay those of ImageNet.
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    panoptic_head=dict(
        type='mmsemi.FastInstHead',
        in_channels=[512, 1024, 2048],
        feat_channels=256,
        out_channels=256,
        num_things_classes=num_classes,
        num_stuff_classes=0,
        num_queries=100,
        num_aux_queries=8,
        guided=True,
        pixel_decoder=dict(
            type='mmsemi.FastInstPixelDecoder',
            pool_scales=(1, 2, 3, 6),
            norm_cfg=dict(type='GN', num_groups=32)),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(
                    embed_dims=256,
                    feedforward_channels=1024,
                    num_fcs=2,
                    ffn_drop=0.0,
                    act_cfg=dict(type='ReLU', inplace=True)))),
        loss_cls=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=2.0,
            reduction='mean',
            class_weight=[1.0] * num_classes + [0.1]),
        loss_mask=dict(
            type='CrossEntropyLoss',
            use_sigmoid=True,
            reduction='mean',
            loss_weight=5.0),
        loss_dice=dict(
            type='DiceLoss',
            use_sigmoid=True,
            activate=True,
            reduction='mean',
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0),
        loss_proposal=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=20.0,
            reduction='mean')),
    panoptic_fusion_head=dict(
        type='mmsemi.QueryFusionHead',
        num_things_classes=num_classes,
        num_stuff_classes=0,
        loss_panoptic=None,
        init_cfg=None),
    train_cfg=dict(
        num_points=12544,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                match_class,
                dict(
                    type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                dict(type='DiceCost', weight=5.0, pred_act=True,
                     eps=1.0), match_location
            ]),
        proposal_assigner=dict(
            type='HungarianAssigner', match_costs=[match_class,
                                                   match_location]),
        sampler=dict(type='MaskPseudoSampler')),
    test_cfg=dict(
        panoptic_on=False,
        semantic_on=False,
        instance_on=True,
        max_per_image=100))
