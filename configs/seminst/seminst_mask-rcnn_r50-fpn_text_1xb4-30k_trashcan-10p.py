# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask-rcnn_r50-fpn_trashcan.py',
    '../_base_/datasets/trashcan_instance.py',
    '../_base_/schedules/schedule_30k_sgd.py',
    '../_base_/default_runtime.py'
]

model = dict(
    roi_head=dict(
        bbox_head=dict(
            type='mmsemi.SemanticShared2FCBBoxHead',
            cls_predictor_cfg=dict(
                type='mmsemi.SemanticClsPredictor',
                text_embeddings='data/trashcan/class_names_scibert.pt'))))
auto_scale_lr = dict(enable=False, base_batch_size=4)
