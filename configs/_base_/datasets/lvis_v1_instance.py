# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# LVIS v1, seen as semi_lvis_v1_instance.py shows its labelled images to the
# student, and nothing else. The held-out images are left out here too:
#   python tools/dataset_converters/split_coco.py --hold-out 0.1 \
#       --ann-file data/lvis_v1/annotations/lvis_v1_train.json \
#       --out-dir data/lvis_v1/annotations
dataset_type = 'mmsemi.LVISV1FederatedDataset'
data_root = 'data/lvis_v1/'
backend_args = None
image_size = (1024, 1024)

labeled_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomResize',
        scale=image_size,
        ratio_range=(0.1, 2.0),
        keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_size=image_size,
        recompute_bbox=True,
        allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    dict(
        type='mmsemi.StrongColor',
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1),
    dict(type='mmsemi.PackDetInputs')
]

# Metrics and calibration go by what an image was searched for.
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor',
             'neg_category_ids', 'not_exhaustive_category_ids')
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=meta_keys)
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file='annotations/lvis_v1_train-fit.json',
    data_prefix=dict(img=''),
    filter_cfg=dict(filter_empty_gt=True, min_size=32),
    pipeline=labeled_pipeline,
    backend_args=backend_args)
# Images of rare classes come more often.
balanced_dataset = dict(
    type='ClassBalancedDataset', oversample_thr=1e-3, dataset=labeled_dataset)

# As many labelled images per GPU as in the semi-supervised batches.
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=2, source_ratio=[1]),
    dataset=dict(
        type='mmsemi.MultiSourceDataset', datasets=[balanced_dataset]))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/lvis_v1_val.json',
        data_prefix=dict(img=''),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args))
test_dataloader = val_dataloader

val_evaluator = dict(
    type='mmsemi.LVISMetric',
    ann_file=data_root + 'annotations/lvis_v1_val.json',
    metric=['bbox', 'segm'],
    backend_args=backend_args)
test_evaluator = val_evaluator
