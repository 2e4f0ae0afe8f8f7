# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# Embedded digits with a long tail: twenty zeros for a nine. 200 of 2,000
# scenes have labels, and about a third of these is held out to measure
# calibration on. Validation scenes have as many of every class. The commands
# that make them are in docs/digits_long_tail.md.
dataset_type = 'mmsemi.LongTailedDigitsDataset'
data_root = 'data/digits_long_tail/'
labeled_ann_file = 'annotations/instances_train.seed0-fold0@10-fit.json'
unlabeled_ann_file = (
    'annotations/instances_train.seed0-fold0@10-unlabeled.json')
calibration_ann_file = 'annotations/instances_train.seed0-fold0@10-calib.json'

branch_field = ['sup', 'unsup_teacher', 'unsup_student']
# Digits must not be flipped. All views of an image share this geometry, so
# pseudo-masks need no warping.
geometry = dict(
    type='mmsemi.RandomAffine',
    max_rotate_degree=10.,
    max_translate_ratio=0.15,
    scaling_ratio_range=(0.8, 1.2),
    max_shear_degree=3.,
    min_area=12,
    img_border_value=40)
strong_color = dict(
    type='mmsemi.StrongColor',
    brightness=0.4,
    contrast=0.4,
    saturation=0.5,
    hue=0.5,
    jitter_prob=0.9,
    blur_prob=0.4,
    blur_sigma=(0.3, 1.0))

labeled_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    geometry,
    strong_color,
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        sup=[dict(type='mmsemi.PackDetInputs')])
]
# The annotations of the unlabelled scenes only measure the pseudo-labels:
# see hidden_label_interval of the model.
unlabeled_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    geometry,
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        unsup_teacher=[dict(type='mmsemi.PackDetInputs')],
        unsup_student=[strong_color,
                       dict(type='mmsemi.PackDetInputs')])
]
# Metrics and calibration go by what a scene was searched for: all classes.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Changes nothing, but some segmenters need the scale_factor it notes.
    dict(type='Resize', scale=(48, 48), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor', 'neg_category_ids',
                   'not_exhaustive_category_ids'))
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=labeled_ann_file,
    data_prefix=dict(img=''),
    filter_cfg=dict(filter_empty_gt=True),
    pipeline=labeled_pipeline)
# Scenes of rare classes come more often.
balanced_dataset = dict(
    type='ClassBalancedDataset', oversample_thr=0.1, dataset=labeled_dataset)
unlabeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=unlabeled_ann_file,
    data_prefix=dict(img=''),
    filter_cfg=dict(filter_empty_gt=False),
    pipeline=unlabeled_pipeline)

train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=16, source_ratio=[1, 1]),
    dataset=dict(
        type='mmsemi.MultiSourceDataset',
        datasets=[balanced_dataset, unlabeled_dataset]))
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img=''),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
# For mmsemi.CalibrationHook: scenes that the teacher did not learn from.
calibration_dataloader = dict(
    batch_size=20,
    num_workers=0,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=calibration_ann_file,
        data_prefix=dict(img=''),
        test_mode=True,
        pipeline=test_pipeline))

val_evaluator = [
    dict(
        type='mmsemi.LVISMetric',
        ann_file=data_root + 'annotations/instances_val.json',
        metric='segm'),
    dict(
        type='mmsemi.CalibrationMetric',
        groups=data_root + 'annotations/instances_val.json',
        per_class=False)
]
test_evaluator = val_evaluator
