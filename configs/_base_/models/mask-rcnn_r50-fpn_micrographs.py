# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# Mask R-CNN for micrographs of one class; set the number of yours.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

num_classes = 1
model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=num_classes),
        mask_head=dict(num_classes=num_classes)))
