# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# RefCOCO: some images with masks, seen as semi_refcoco.py shows them to the
# student, and nothing else; the supervised rows and the burn-in of SemiRES.
# For LAVT on all images, drop image_list:
#   labeled_dataset = _base_.labeled_dataset
#   labeled_dataset.image_list = None
_base_ = './semi_refcoco.py'

labeled_dataset = _base_.labeled_dataset
labeled_dataset.pipeline[-1] = dict(type='mmsemi.PackSegInputs')
# As many labelled images per GPU as in the burn-in of SemiRES (4 GPUs).
train_dataloader = dict(
    _delete_=True,
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=2, source_ratio=[1]),
    dataset=dict(type='mmsemi.MultiSourceDataset', datasets=[labeled_dataset]))
