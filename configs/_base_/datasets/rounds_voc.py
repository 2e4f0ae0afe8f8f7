# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# Pascal VOC as ST and ST++ train on it: sizes relative to 400 pixels, crops of
# 321, strong colours and Cutout on pseudo-labelled images only. Unlabelled
# images are labelled at five sizes, mirrored or not.
_base_ = './voc.py'
backend_args = None
unlabeled_list = 'splits/blended-cps-1over8-unlabeled.txt'

geometry = [
    dict(
        type='mmsemi.RandomResizeByLongSide',
        ratio_range=(0.5, 2.0),
        base_size=400),
    dict(type='RandomCrop', crop_size=321),
    dict(type='RandomFlip', prob=0.5)
]
loading = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', backend_args=backend_args)
]
labeled_dataset = _base_.labeled_dataset
labeled_dataset.pipeline = [
    *loading, *geometry,
    dict(type='mmsemi.PackSegInputs')
]
unlabeled_dataset = dict(
    type=_base_.dataset_type,
    data_root=_base_.data_root,
    ann_file=unlabeled_list,
    data_prefix=dict(img_path='JPEGImages'),
    pipeline=[loading[0], dict(type='mmsemi.PackSegInputs')],
    backend_args=backend_args)
pseudo_pipeline = [
    *loading, *geometry,
    dict(type='mmsemi.StrongColor'),
    dict(type='mmsemi.Cutout'),
    dict(type='mmsemi.PackSegInputs')
]
# 16 images a step on two GPUs.
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    sampler=dict(batch_size=8),
    dataset=dict(datasets=[labeled_dataset]))
