# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# The labelled digits with referring expressions alone, with the augmentation
# that the student gets.
_base_ = './semi_digits_referring.py'

labeled_dataset = _base_.labeled_dataset
labeled_dataset.pipeline[-1] = dict(type='mmsemi.PackSegInputs')
train_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=8, source_ratio=[1]),
    dataset=dict(type='mmsemi.MultiSourceDataset', datasets=[labeled_dataset]))
