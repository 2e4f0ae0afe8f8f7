# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# Pascal VOC 2012: some images with labels, seen as semi_voc.py shows them to
# the student, and nothing else. The lists come from
#   python tools/dataset_converters/convert_semantic_splits.py convert \
#       --labeled LIST --val LIST --data-root data/VOCdevkit/VOC2012 \
#       --out-dir data/VOCdevkit/VOC2012/splits
# and are named {protocol}-{fraction}.txt.
dataset_type = 'PascalVOCDataset'
data_root = 'data/VOCdevkit/VOC2012/'
backend_args = None
labeled_list = 'splits/blended-cps-1over8.txt'
crop_size = 321

labeled_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', backend_args=backend_args),
    dict(type='mmsemi.RandomResizeByLongSide', ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmsemi.PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', backend_args=backend_args),
    dict(type='PackSegInputs')
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=labeled_list,
    data_prefix=dict(
        img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
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
        ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=dict(
            img_path='JPEGImages', seg_map_path='SegmentationClass'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmsemi.SemanticMetric')
test_evaluator = val_evaluator
