# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# All of COCO with labels, as in the released code of FastInst: no strong
# colours.
_base_ = './semi_coco_fastinst.py'

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = 'annotations/instances_train2017.json'
labeled_dataset.pipeline[-2:] = [dict(type='mmsemi.PackDetInputs')]
train_dataloader = dict(
    _delete_=True,
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=4, source_ratio=[1]),
    dataset=dict(type='mmsemi.MultiSourceDataset', datasets=[labeled_dataset]))
