# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# Mask R-CNN for LVIS v1: 1,203 classes, up to 300 instances of an image, and
# next to no threshold on their scores, as in mmdet's own configs.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=1203), mask_head=dict(num_classes=1203)),
    test_cfg=dict(rcnn=dict(score_thr=0.0001, max_per_img=300)))
