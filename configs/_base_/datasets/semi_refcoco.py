# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# RefCOCO (unc): some images with masks, the others of train without, all with
# their sentences. Files come from
#   python tools/dataset_converters/refer2json.py data/refer \
#       --dataset refcoco --partition unc \
#       --out data/coco/refer/refcoco-unc.json
#   python tools/dataset_converters/split_refer.py \
#       data/coco/refer/refcoco-unc.json --percent 0.5 1 2 5
#
# Other lists, mask proposals (made by tools/generate_proposals.py) and another
# test split, in a config on top:
#   labeled_dataset = _base_.labeled_dataset
#   unlabeled_dataset = _base_.unlabeled_dataset
#   labeled_dataset.image_list = 'refer/splits/...'
#   unlabeled_dataset.image_list = 'refer/splits/...-unlabeled.txt'
#   unlabeled_dataset.pipeline[-1].unsup_teacher.insert(
#       0, dict(type='mmsemi.LoadMaskProposals', store='data/...'))
#   train_dataloader = dict(
#       dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))
#   test_dataloader = dict(dataset=dict(split='testA'))
dataset_type = 'mmsemi.ReferringDataset'
data_root = 'data/coco/'
ann_file = 'refer/refcoco-unc.json'
data_prefix = dict(img_path='train2014/')
labeled_list = 'refer/splits/refcoco-unc.semires@1.txt'
unlabeled_list = 'refer/splits/refcoco-unc.semires@1-unlabeled.txt'
backend_args = None
# Width and height; the aspect ratio is not kept.
scale = (480, 480)

branch_field = ['sup', 'unsup_teacher', 'unsup_student']

labeled_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='mmsemi.LoadReferringMask'),
    dict(type='mmsemi.ResizeTo', scale=scale),
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        sup=[dict(type='mmsemi.PackSegInputs')])
]
# As in SemiRES' code: the blur belongs to the weak view, which the strong one
# starts from; magnitudes are the code's. Unlike there, colours change before
# the image is normalised (by the data preprocessor), and once. Nothing is
# flipped; mmsemi.FlipWithWords behind ResizeTo would.
unlabeled_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='mmsemi.ResizeTo', scale=scale),
    dict(type='mmsemi.RandomGaussianBlur', sigma=(1.0, 1.0), prob=0.5),
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        unsup_teacher=[dict(type='mmsemi.PackSegInputs')],
        unsup_student=[
            dict(
                type='mmsemi.ColorJitter',
                brightness=0.25,
                contrast=0.25,
                saturation=0.25,
                hue=0.25,
                prob=0.5),
            dict(type='mmsemi.PackSegInputs')
        ])
]
# The mask is loaded behind the resizing and keeps the image's own size.
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='mmsemi.ResizeTo', scale=scale),
    dict(type='mmsemi.LoadReferringMask'),
    dict(type='mmsemi.PackSegInputs')
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=ann_file,
    data_prefix=data_prefix,
    image_list=labeled_list,
    pipeline=labeled_pipeline)
unlabeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=ann_file,
    data_prefix=data_prefix,
    image_list=unlabeled_list,
    labeled=False,
    pipeline=unlabeled_pipeline)

# 3 labelled and 3 unlabelled refs per GPU; SemiRES: 4 GPUs.
train_dataloader = dict(
    batch_size=6,
    num_workers=4,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=6, source_ratio=[1, 1]),
    dataset=dict(
        type='mmsemi.MultiSourceDataset',
        datasets=[labeled_dataset, unlabeled_dataset]))
# Every sentence counts, as it was typed, as in LAVT's evaluation.
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=ann_file,
        data_prefix=data_prefix,
        split='val',
        sentence='all',
        text_field='raw',
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

# With eval_size=(480, 480) numbers can be laid beside LAVT's.
val_evaluator = dict(type='mmsemi.ReferringMetric')
test_evaluator = val_evaluator
