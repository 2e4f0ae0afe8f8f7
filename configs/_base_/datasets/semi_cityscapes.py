# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# Cityscapes: some images with labels, the others of train without. The lists
# come from
#   python tools/dataset_converters/convert_semantic_splits.py convert \
#       --labeled LIST --unlabeled LIST --val LIST \
#       --data-root data/cityscapes --out-dir data/cityscapes/splits
# and are named {protocol}-{fraction}[-unlabeled].txt. Masks are the
# labelTrainIds that mmseg's tools/dataset_converters/cityscapes.py makes.
#
# Other lists, another crop and a second strong view, in a config on top:
#   labeled_dataset = _base_.labeled_dataset
#   unlabeled_dataset = _base_.unlabeled_dataset
#   labeled_dataset.ann_file = 'splits/...'
#   unlabeled_dataset.ann_file = 'splits/...'
#   labeled_dataset.pipeline[3].crop_size = 721
#   unlabeled_dataset.pipeline[2].crop_size = 721
#   views = unlabeled_dataset.pipeline[-1]
#   views.unsup_student_2 = views.unsup_student
#   train_dataloader = dict(
#       dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
dataset_type = 'CityscapesDataset'
data_root = 'data/cityscapes/'
backend_args = None
labeled_list = 'splits/city-cps-1over8.txt'
unlabeled_list = 'splits/city-cps-1over8-unlabeled.txt'
# Images that are smaller are padded by the model's data preprocessor, which
# marks what it pads: data_preprocessor=dict(size=(801, 801)). It pads with the
# mean colour, UniMatch's code with black.
crop_size = 801

branch_field = ['sup', 'unsup_teacher', 'unsup_student', 'unsup_student_2']

labeled_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', backend_args=backend_args),
    dict(type='mmsemi.RandomResizeByLongSide', ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        sup=[dict(type='mmsemi.PackSegInputs')])
]
# What stands before MultiBranch is shared by all views: pseudo-labels are not
# moved between them.
unlabeled_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='mmsemi.RandomResizeByLongSide', ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        unsup_teacher=[dict(type='mmsemi.PackSegInputs')],
        unsup_student=[
            dict(type='mmsemi.StrongColor'),
            dict(type='mmsemi.PackSegInputs')
        ])
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', backend_args=backend_args),
    dict(type='PackSegInputs')
]

# For images in a folder of their own, use mmsemi.UnlabeledImageDataset.
labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=labeled_list,
    data_prefix=dict(
        img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
    pipeline=labeled_pipeline,
    backend_args=backend_args)
unlabeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=unlabeled_list,
    data_prefix=dict(img_path='leftImg8bit/train'),
    pipeline=unlabeled_pipeline,
    backend_args=backend_args)

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
        data_prefix=dict(
            img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmsemi.SemanticMetric')
test_evaluator = val_evaluator
