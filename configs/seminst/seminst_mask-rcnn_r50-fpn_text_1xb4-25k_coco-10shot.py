# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_25k_sgd.py',
    '../_base_/default_runtime.py'
]

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = (
    'semi_anns/instances_train2017.seed0-fold0@10shot.json')
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(batch_size=4),
    dataset=dict(datasets=[labeled_dataset]))

model = dict(
    roi_head=dict(
        bbox_head=dict(
            type='mmsemi.SemanticShared2FCBBoxHead',
            cls_predictor_cfg=dict(
                type='mmsemi.SemanticClsPredictor',
                text_embeddings='data/coco/class_names_scibert.pt'))))
auto_scale_lr = dict(enable=False, base_batch_size=4)
