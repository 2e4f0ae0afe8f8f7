# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# semi_coco_instance.py in the sizes of FastInst: a short side of 416 to 640, a
# long one of at most 853, and 640 and 853 in tests. Half of the labelled
# images are cropped, as in FastInst's own training; the unlabelled ones keep
# whole objects for the teacher.
dataset_type = 'CocoDataset'
data_root = 'data/coco/'
backend_args = None

branch_field = ['sup', 'unsup_teacher', 'unsup_student']
resize = dict(
    type='RandomChoiceResize',
    scales=[(853, side) for side in range(416, 641, 32)],
    keep_ratio=True)
crop = dict(
    type='RandomChoice',
    transforms=[[resize],
                [
                    dict(
                        type='RandomChoiceResize',
                        scales=[(4200, 400), (4200, 500), (4200, 600)],
                        keep_ratio=True),
                    dict(
                        type='RandomCrop',
                        crop_type='absolute_range',
                        crop_size=(384, 600),
                        allow_negative_crop=True), resize
                ]])
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
    dict(type='RandomFlip', prob=0.5), crop,
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2), by_mask=True),
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
    dict(type='LoadEmptyAnnotations', with_mask=True), resize,
    dict(type='RandomFlip', prob=0.5),
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
    ann_file='semi_anns/instances_train2017.1@10.json',
    data_prefix=dict(img='train2017/'),
    filter_cfg=dict(filter_empty_gt=True, min_size=32),
    pipeline=labeled_pipeline,
    backend_args=backend_args)
unlabeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file='semi_anns/instances_train2017.1@10-unlabeled.json',
    data_prefix=dict(img='train2017/'),
    filter_cfg=dict(filter_empty_gt=False),
    pipeline=unlabeled_pipeline,
    backend_args=backend_args)

# 2 labelled and 2 unlabelled images per GPU.
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler',
        batch_size=4,
        source_ratio=[1, 1],
        group_by_aspect_ratio=True),
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
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args))
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric=['bbox', 'segm'],
    backend_args=backend_args)
test_evaluator = val_evaluator
