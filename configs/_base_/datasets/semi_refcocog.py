# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# G-Ref (umd) as semi_refcoco.py has RefCOCO.
_base_ = './semi_refcoco.py'

ann_file = 'refer/refcocog-umd.json'
labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = ann_file
labeled_dataset.image_list = 'refer/splits/refcocog-umd.semires@1.txt'
unlabeled_dataset = _base_.unlabeled_dataset
unlabeled_dataset.ann_file = ann_file
unlabeled_dataset.image_list = \
    'refer/splits/refcocog-umd.semires@1-unlabeled.txt'
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
val_dataloader = dict(dataset=dict(ann_file=ann_file))
test_dataloader = val_dataloader
