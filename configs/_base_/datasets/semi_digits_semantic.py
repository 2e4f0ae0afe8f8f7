# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# The embedded digits as label maps: 48-pixel scenes of one or two handwritten
# digits, geometry and colours as in semi_digits_instance.py. Make them with
#   python tools/dataset_converters/make_digits.py data/digits \
#       --image-size 48 --digits-per-scene 1 2
dataset_type = 'mmsemi.DigitsSemanticDataset'
data_root = 'data/digits/'
labeled_list = 'splits/train.seed0-fold0@2.txt'
unlabeled_list = 'splits/train.seed0-fold0@2-unlabeled.txt'

# A second strong view is one more pipeline of MultiBranch:
#   unlabeled_dataset = _base_.unlabeled_dataset
#   views = unlabeled_dataset.pipeline[-1]
#   views.unsup_student_2 = views.unsup_student
#   train_dataloader = dict(
#       dataset=dict(datasets=[_base_.labeled_dataset, unlabeled_dataset]))
branch_field = ['sup', 'unsup_teacher', 'unsup_student', 'unsup_student_2']
# Digits must not be flipped. All views of an image share this geometry.
geometry = dict(
    type='mmsemi.RandomAffine',
    max_rotate_degree=10.,
    max_translate_ratio=0.15,
    scaling_ratio_range=(0.8, 1.2),
    max_shear_degree=3.,
    img_border_value=40,
    # Beside a scene there is no digit: that is background.
    seg_ignore_label=0)
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
    dict(type='LoadAnnotations'),
    geometry,
    strong_color,
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        sup=[dict(type='mmsemi.PackSegInputs')])
]
# The scenes have label maps, which are not read here. To measure
# pseudo-labels with them, give the unlabelled source
# data_prefix.seg_map_path='masks/train/' and LoadAnnotations.
unlabeled_pipeline = [
    dict(type='LoadImageFromFile'),
    geometry,
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        unsup_teacher=[dict(type='mmsemi.PackSegInputs')],
        unsup_student=[strong_color,
                       dict(type='mmsemi.PackSegInputs')])
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=labeled_list,
    data_prefix=dict(img_path='train/', seg_map_path='masks/train/'),
    pipeline=labeled_pipeline)
unlabeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=unlabeled_list,
    data_prefix=dict(img_path='train/'),
    pipeline=unlabeled_pipeline)

# 8 labelled and 8 unlabelled scenes.
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(
        type='mmsemi.MultiSourceSampler', batch_size=16, source_ratio=[1, 1]),
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
        ann_file='splits/val.txt',
        data_prefix=dict(img_path='val/', seg_map_path='masks/val/'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmsemi.SemanticMetric')
test_evaluator = val_evaluator
