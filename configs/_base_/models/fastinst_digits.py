# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# FastInst, small enough to learn 48-pixel scenes on two CPU cores: maps of
# strides 4, 8 and 16 where the full model has 8, 16 and 32, a decoder of one
# layer, and 16 queries for at most two digits. The loss of classes weighs as
# much as those of masks (2 in the full model): from a few examples masks are
# learned long before classes.
num_classes = 10
channels = 64
norm_cfg = dict(type='BN', requires_grad=True)
attention = dict(
    embed_dims=channels, num_heads=4, attn_drop=0.0, batch_first=True)
# Costs that queries and the cells they come from share.
match_class = dict(type='ClassificationCost', weight=2.0)
match_location = dict(type='mmsemi.LocationCost', weight=1000.0)
model = dict(
    type='mmsemi.FastInst',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[114., 114., 114.],
        std=[60., 60., 60.],
        bgr_to_rgb=True,
        pad_size_divisor=16,
        pad_mask=True,
        mask_pad_value=0,
        pad_seg=False),
    # It starts from nothing, so batch statistics are learned.
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=16,
        stem_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch'),
    panoptic_head=dict(
        type='mmsemi.FastInstHead',
        in_channels=[16, 32, 64],
        feat_channels=channels,
        out_channels=channels,
        num_things_classes=num_classes,
        num_stuff_classes=0,
        num_queries=16,
        num_aux_queries=4,
        guided=True,
        pixel_decoder=dict(
            type='mmsemi.FastInstPixelDecoder',
            pool_scales=(1, 2),
            norm_cfg=dict(type='GN', num_groups=8)),
        transformer_decoder=dict(
            num_layers=1,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(
                    embed_dims=channels,
                    feedforward_channels=2 * channels,
                    num_fcs=2,
                    ffn_drop=0.0,
                    act_cfg=dict(type='ReLU', inplace=True)))),
        loss_cls=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=5.0,
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
        num_points=576,
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
        max_per_image=20))
