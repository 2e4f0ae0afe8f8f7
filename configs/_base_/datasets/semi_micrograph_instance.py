# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# A template for your own micrographs: a few labelled images as COCO files and
# a folder of others without labels. Write the names of your classes, in the
# order of "categories" in the files, into `metainfo`, here or in a config
# that has this one for a base, where the data sets must be given it again:
#   metainfo = dict(classes=('austenite', 'ferrite'))
#   labeled_dataset = _base_.labeled_dataset
#   labeled_dataset.metainfo = metainfo
#   train_dataloader = dict(
#       dataset=dict(datasets=[labeled_dataset, _base_.unlabeled_dataset]))
#   val_dataloader = dict(dataset=dict(metainfo=metainfo))
#   test_dataloader = val_dataloader
# and check the files:
#   python tools/dataset_converters/check_instances.py \
#       data/micrographs/annotations/instances_train.json \
#       --img-dir data/micrographs/train --classes austenite ferrite
# num_classes of the model's heads is the number of names.
dataset_type = 'CocoDataset'
data_root = 'data/micrographs/'
metainfo = dict(classes=('grain', ))
backend_args = None

branch_field = ['sup', 'unsup_teacher', 'unsup_student']
resize = dict(
    type='RandomChoiceResize',
    scales=[(853, side) for side in range(416, 641, 32)],
    keep_ratio=True)
# A micrograph has no up and down.
flip = dict(
    type='RandomFlip',
    prob=[0.25, 0.25, 0.25],
    direction=['horizontal', 'vertical', 'diagonal'])
# Micrographs are grey, or their colours tell the classes apart: both views
# have the same hue and saturation.
strong_color = dict(
    type='mmsemi.StrongColor',
    brightness=0.4,
    contrast=0.4,
    saturation=0.,
    hue=0.,
    gray_prob=0.)

# Labelled images get the strong colours too: otherwise colour alone would
# tell the student which images carry true labels.
labeled_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True), resize, flip,
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    strong_color,
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        sup=[dict(type='mmsemi.PackDetInputs')])
]

# What stands before MultiBranch is shared by both views, so pseudo-masks
# need no warping.
unlabeled_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    # Some data preprocessors pad the masks of every sample.
    dict(type='LoadEmptyAnnotations', with_mask=True), resize, flip,
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        unsup_teacher=[dict(type='mmsemi.PackDetInputs')],
        unsup_student=[strong_color,
                       dict(type='mmsemi.PackDetInputs')])
]

test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Resize', scale=(853, 640), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor'))
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    metainfo=metainfo,
    ann_file='annotations/instances_train.json',
    data_prefix=dict(img='train/'),
    filter_cfg=dict(filter_empty_gt=True, min_size=32),
    pipeline=labeled_pipeline,
    backend_args=backend_args)
# Its classes are those of the labelled images.
unlabeled_dataset = dict(
    type='mmsemi.UnlabeledImageDataset',
    data_root=data_root,
    img_dir='unlabeled/',
    pipeline=unlabeled_pipeline)

# 2 labelled and 2 unlabelled images per GPU.
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=4, source_ratio=[1, 1]),
    dataset=dict(
        type='mmsemi.MultiSourceDataset',
        datasets=[labeled_dataset, unlabeled_dataset]))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args))
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric=['bbox', 'segm'],
    backend_args=backend_args)
test_evaluator = val_evaluator
