# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# Mask R-CNN, small enough to learn 48-pixel scenes on two CPU cores. It needs
# the ops of mmcv: make ops.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

norm_cfg = dict(type='BN', requires_grad=True)
# One detector of boxes and masks for all classes: what differs between
# frequent and rare ones is their classification.
model = dict(
    data_preprocessor=dict(
        mean=[114., 114., 114.], std=[60., 60., 60.], pad_size_divisor=16),
    backbone=dict(
        depth=18,
        base_channels=16,
        stem_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False,
        init_cfg=None),
    neck=dict(in_channels=[16, 32, 64], out_channels=32, num_outs=3),
    rpn_head=dict(
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16])),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=1),
            out_channels=32,
            featmap_strides=[4, 8]),
        bbox_head=dict(
            in_channels=32,
            fc_out_channels=128,
            num_classes=10,
            reg_class_agnostic=True),
        mask_roi_extractor=dict(
            roi_layer=dict(output_size=7, sampling_ratio=1),
            out_channels=32,
            featmap_strides=[4, 8]),
        mask_head=dict(
            num_convs=2,
            in_channels=32,
            conv_out_channels=32,
            num_classes=10,
            class_agnostic=True)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=100, max_per_img=50),
        rcnn=dict(sampler=dict(num=16, pos_fraction=0.5), mask_size=14)),
    test_cfg=dict(
        rpn=dict(nms_pre=100, max_per_img=50), rcnn=dict(max_per_img=20)))
