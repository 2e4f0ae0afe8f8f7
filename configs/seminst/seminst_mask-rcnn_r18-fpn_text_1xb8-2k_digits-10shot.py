# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask-rcnn_digits.py',
    '../_base_/datasets/digits_instance.py',
    '../_base_/schedules/schedule_2k.py', '../_base_/digits_runtime.py'
]

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = (
    'annotations/instances_train.seed0-fold0@10shot.json')
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset]))

# What the names of the digits share is how they are spelled: no language
# model is needed, or would know more of what digits look like.
text_embeddings = dict(
    model='char-ngrams',
    classes=('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven',
             'eight', 'nine'))
model = dict(
    roi_head=dict(
        bbox_head=dict(
            type='mmsemi.SemanticShared2FCBBoxHead',
            cls_predictor_cfg=dict(
                type='mmsemi.SemanticClsPredictor',
                text_embeddings=text_embeddings))))
