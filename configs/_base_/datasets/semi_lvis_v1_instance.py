# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# LVIS v1 with labels and COCO's unlabeled2017 without. LVIS labels images of
# COCO; data/lvis_v1 has annotations/lvis_v1_{train,val}.json and links to
# COCO's train2017 and val2017. About 15,000 images of LVIS val are of
# train2017, so train2017 must not be the pool without labels.
# The held-out images, which calibration is measured on, come from
#   python tools/dataset_converters/split_coco.py --hold-out 0.1 \
#       --ann-file data/lvis_v1/annotations/lvis_v1_train.json \
#       --out-dir data/lvis_v1/annotations
# Geometry is mmdet's large-scale jitter for Mask2Former.
dataset_type = 'mmsemi.LVISV1FederatedDataset'
data_root = 'data/lvis_v1/'
backend_args = None
image_size = (1024, 1024)

branch_field = ['sup', 'unsup_teacher', 'unsup_student']
strong_color = dict(
    type='mmsemi.StrongColor',
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1)

# Labelled images get the strong colours too: otherwise colour alone would
# tell the student which images carry true labels.
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
    strong_color,
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        sup=[dict(type='mmsemi.PackDetInputs')])
]

# What stands before MultiBranch is shared by both views, so pseudo-masks
# need no warping. Geometry inside a branch is possible too.
unlabeled_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    # The data preprocessor pads the masks of every sample.
    dict(type='LoadEmptyAnnotations', with_mask=True),
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
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        unsup_teacher=[dict(type='mmsemi.PackDetInputs')],
        unsup_student=[strong_color,
                       dict(type='mmsemi.PackDetInputs')])
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
# As the test pipeline, but annotations follow the resize.
calibration_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
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
unlabeled_dataset = dict(
    type='mmsemi.UnlabeledImageDataset',
    data_root='data/coco/',
    img_dir='unlabeled2017/',
    pipeline=unlabeled_pipeline)

# 2 labelled and 2 unlabelled images per GPU. All are padded to one size, so
# there is nothing to group.
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=4, source_ratio=[1, 1]),
    dataset=dict(
        type='mmsemi.MultiSourceDataset',
        datasets=[balanced_dataset, unlabeled_dataset]))
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
# For mmsemi.CalibrationHook: images that the teacher did not learn from.
calibration_dataloader = dict(
    batch_size=1,
    num_workers=2,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/lvis_v1_train-calib.json',
        data_prefix=dict(img=''),
        test_mode=True,
        pipeline=calibration_pipeline,
        backend_args=backend_args))

val_evaluator = dict(
    type='mmsemi.LVISMetric',
    ann_file=data_root + 'annotations/lvis_v1_val.json',
    metric=['bbox', 'segm'],
    backend_args=backend_args)
test_evaluator = val_evaluator
