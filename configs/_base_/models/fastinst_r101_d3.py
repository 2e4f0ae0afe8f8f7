# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# FastInst on ResNet-101. The published training started from detectron2's
# weights for ImageNet; these are torchvision's, so expect small differences.
_base_ = './fastinst_r50_d3.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(
            type='Pretrained', checkpoint='torchvision://resnet101')))
