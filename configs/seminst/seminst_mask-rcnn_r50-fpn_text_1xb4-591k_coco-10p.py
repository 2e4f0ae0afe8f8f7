# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_591k_sgd.py',
    '../_base_/default_runtime.py'
]

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(batch_size=4))

model = dict(
    roi_head=dict(
        bbox_head=dict(
            type='mmsemi.SemanticShared2FCBBoxHead',
            cls_predictor_cfg=dict(
                type='mmsemi.SemanticClsPredictor',
                text_embeddings='data/coco/class_names_scibert.pt'))))
auto_scale_lr = dict(enable=False, base_batch_size=4)
