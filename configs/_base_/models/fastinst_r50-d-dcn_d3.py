# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# FastInst on ResNet-50-D with deformable convolutions, which need mmcv's
# compiled ops. It starts from timm's resnet50d_ra2-464e36ba.pth, in mmdet's
# layout: tools/model_converters/fastinst_to_mmsemi.py writes the file.
_base_ = './fastinst_r50_d3.py'

model = dict(
    backbone=dict(
        type='ResNetV1d',
        dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, False, True, True),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='pretrained/resnet50d_ra2.pth',
            prefix='backbone.')))
