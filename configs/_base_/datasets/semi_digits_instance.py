# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# The embedded digits: 48-pixel scenes of one or two handwritten digits, small
# enough that two CPU cores train in minutes. Make them with
#   python tools/dataset_converters/make_digits.py data/digits \
#       --image-size 48 --digits-per-scene 1 2
dataset_type = 'mmsemi.DigitsInstanceDataset'
data_root = 'data/digits/'
labeled_ann_file = 'annotations/instances_train.seed0-fold0@2.json'
unlabeled_ann_file = 'annotations/instances_train.seed0-fold0@2-unlabeled.json'

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
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Changes nothing, but some segmenters need the scale_factor it notes.
    dict(type='Resize', scale=(48, 48), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor'))
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=labeled_ann_file,
    data_prefix=dict(img='train/'),
    filter_cfg=dict(filter_empty_gt=True),
    pipeline=labeled_pipeline)
unlabeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=unlabeled_ann_file,
    data_prefix=dict(img='train/'),
    filter_cfg=dict(filter_empty_gt=False),
    pipeline=unlabeled_pipeline)

train_dataloader = dict(
    batch_size=24,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=24, source_ratio=[1, 2]),
    dataset=dict(
        type='mmsemi.MultiSourceDataset',
        datasets=[labeled_dataset, unlabeled_dataset]))
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric=['segm'])
test_evaluator = val_evaluator
