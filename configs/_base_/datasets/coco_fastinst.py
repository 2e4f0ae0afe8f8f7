# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# The labelled images of semi_coco_fastinst.py alone, with the augmentation
# that the student gets.
_base_ = './semi_coco_fastinst.py'

labeled_dataset = _base_.labeled_dataset
labeled_dataset.pipeline[-1] = dict(type='mmsemi.PackDetInputs')
# As many images as both sources of the semi-supervised batches have.
train_dataloader = dict(
    _delete_=True,
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=4, source_ratio=[1]),
    dataset=dict(type='mmsemi.MultiSourceDataset', datasets=[labeled_dataset]))
