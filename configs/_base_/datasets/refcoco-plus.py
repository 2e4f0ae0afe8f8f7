# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# RefCOCO+ (unc) as refcoco.py has RefCOCO.
_base_ = './refcoco.py'

ann_file = 'refer/refcoco+-unc.json'
labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = ann_file
labeled_dataset.image_list = 'refer/splits/refcoco+-unc.semires@1.txt'
train_dataloader = dict(dataset=dict(datasets=[labeled_dataset]))
val_dataloader = dict(dataset=dict(ann_file=ann_file))
test_dataloader = val_dataloader
