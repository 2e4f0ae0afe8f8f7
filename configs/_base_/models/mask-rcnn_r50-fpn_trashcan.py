# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# Mask R-CNN for the 22 classes of TrashCan.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=22), mask_head=dict(num_classes=22)))
