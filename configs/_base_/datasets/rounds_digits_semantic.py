# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# The digits for rounds of training: labelled scenes with geometry and colours
# to train on, unlabelled ones as they are to label, and what pseudo-labelled
# ones go through. The colours are those of the labelled scenes, with ST's
# Cutout on top.
_base_ = './semi_digits_semantic.py'

labeled_dataset = _base_.labeled_dataset
labeled_dataset.pipeline[-1] = dict(type='mmsemi.PackSegInputs')
unlabeled_dataset = _base_.unlabeled_dataset
unlabeled_dataset.pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmsemi.PackSegInputs')
]
pseudo_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'), _base_.geometry, _base_.strong_color,
    dict(type='mmsemi.Cutout'),
    dict(type='mmsemi.PackSegInputs')
]
# Digits must not be flipped, and all scenes have one size.
labeling = dict(scales=(1., ), flip=False, batch_size=50)
train_dataloader = dict(
    sampler=dict(source_ratio=[1]), dataset=dict(datasets=[labeled_dataset]))
