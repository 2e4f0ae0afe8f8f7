# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# mmdet's own config, which brings model, schedule and evaluation; labels,
# views and runtime are those of the semi-supervised counterpart.
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'

labeled_dataset = dict(
    type='CocoDataset',
    data_root='data/coco/',
    ann_file='semi_anns/instances_train2017.1@10.json',
    data_prefix=dict(img='train2017/'),
    filter_cfg=dict(filter_empty_gt=True, min_size=32),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='RandomFlip', prob=0.5),
        dict(
            type='RandomResize',
            scale=(1024, 1024),
            ratio_range=(0.1, 2.0),
            keep_ratio=True),
        dict(
            type='RandomCrop',
            crop_size=(1024, 1024),
            recompute_bbox=True,
            allow_negative_crop=True),
        dict(
            type='FilterAnnotations',
            min_gt_bbox_wh=(1e-5, 1e-5),
            by_mask=True),
        dict(
            type='mmsemi.StrongColor',
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1),
        dict(type='mmsemi.PackDetInputs')
    ])
train_dataloader = dict(
    _delete_=True,
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=1, source_ratio=[1]),
    dataset=dict(
        type='mmsemi.MultiSourceDataset', datasets=[labeled_dataset]))

custom_imports = dict(imports=['mmsemi'], allow_failed_imports=False)
default_hooks = dict(
    iter_seed=dict(type='mmsemi.IterSeedHook'),
    training_check=dict(type='mmsemi.TrainingCheckHook'),
    checkpoint=dict(save_best='coco/segm_mAP', rule='greater'))
auto_scale_lr = dict(enable=False, base_batch_size=8)
