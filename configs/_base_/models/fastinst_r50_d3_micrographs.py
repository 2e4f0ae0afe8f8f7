# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# FastInst-D3 for micrographs of one class; set the number of yours.
_base_ = './fastinst_r50_d3.py'

num_classes = 1
model = dict(
    panoptic_head=dict(
        num_things_classes=num_classes,
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])),
    panoptic_fusion_head=dict(num_things_classes=num_classes))
