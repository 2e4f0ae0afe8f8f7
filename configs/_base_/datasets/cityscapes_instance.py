# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# Cityscapes instances: a share of train with labels, seen as
# semi_cityscapes_instance.py shows them to the student, and nothing else; how
# the annotation files are made stands there.
dataset_type = 'CityscapesDataset'
data_root = 'data/cityscapes/'
backend_args = None
scales = [(2 * side, side)
          for side in (512, 614, 716, 819, 921, 1024, 1126, 1228, 1331, 1433,
                       1536, 1638, 1740, 1843, 1945, 2048)]

labeled_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_size=(1024, 512),
        recompute_bbox=True,
        allow_negative_crop=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion', swap_channels=False),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    dict(
        type='mmsemi.StrongColor',
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1),
    dict(type='mmsemi.PackDetInputs')
]

test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor'))
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file='semi_anns/'
    'instancesonly_filtered_gtFine_train.seed0-fold0@4.84.json',
    data_prefix=dict(img='leftImg8bit/train/'),
    filter_cfg=dict(filter_empty_gt=True, min_size=32),
    pipeline=labeled_pipeline,
    backend_args=backend_args)
# As many labelled images per GPU as in the semi-supervised batches.
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=2, source_ratio=[1]),
    dataset=dict(type='mmsemi.MultiSourceDataset', datasets=[labeled_dataset]))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instancesonly_filtered_gtFine_val.json',
        data_prefix=dict(img='leftImg8bit/val/'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args))
test_dataloader = val_dataloader

# The AP of COCO's tool. That of the Cityscapes server, which papers report,
# is mmdet's CityScapesMetric and needs the package cityscapesscripts.
val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instancesonly_filtered_gtFine_val.json',
    metric=['bbox', 'segm'],
    backend_args=backend_args)
test_evaluator = val_evaluator
