# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# The embedded digits with referring expressions: 64-pixel scenes of two to
# four handwritten digits, "the leftmost red seven". Make them with
#   python tools/dataset_converters/make_digits.py data/digits_referring \
#       --referring
# The words of the sentences are mmsemi.datasets.DIGIT_WORDS.
#
# Mask proposals are one more line in front of the teacher's packing:
#   unlabeled_dataset = _base_.unlabeled_dataset
#   unlabeled_dataset.pipeline[-1].unsup_teacher.insert(
#       0, dict(type='mmsemi.LoadMaskProposals', store='data/...'))
#   train_dataloader = dict(
#       dataset=dict(datasets=[_base_.labeled_dataset, unlabeled_dataset]))
dataset_type = 'mmsemi.ReferringDataset'
data_root = 'data/digits_referring/'
ann_file = 'annotations/referring.json'
labeled_list = 'splits/referring.seed0-fold0@2.txt'
unlabeled_list = 'splits/referring.seed0-fold0@2-unlabeled.txt'

branch_field = ['sup', 'unsup_teacher', 'unsup_student']
# Digits must not be flipped, and what is leftmost or big has to stay so:
# whole scenes are shifted and grow a little. All views share this geometry.
geometry = dict(
    type='mmsemi.RandomAffine',
    max_rotate_degree=5.,
    max_translate_ratio=0.05,
    scaling_ratio_range=(0.95, 1.05),
    max_shear_degree=2.,
    img_border_value=20,
    # Beside a scene there is no digit: that is background.
    seg_ignore_label=0)
# Sentences name colours: they may get lighter, but not turn into others.
strong_color = dict(
    type='mmsemi.StrongColor',
    brightness=0.4,
    contrast=0.4,
    saturation=0.3,
    hue=0.02,
    jitter_prob=0.9,
    gray_prob=0.,
    blur_prob=0.4,
    blur_sigma=(0.3, 1.0))

labeled_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmsemi.LoadReferringMask'),
    geometry,
    strong_color,
    dict(
        type='mmsemi.MultiBranch',
        branch_field=branch_field,
        sup=[dict(type='mmsemi.PackSegInputs')])
]
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
    dict(type='mmsemi.LoadReferringMask'),
    dict(type='mmsemi.PackSegInputs')
]

labeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=ann_file,
    image_list=labeled_list,
    pipeline=labeled_pipeline)
# The masks of these scenes are in the file and not handed out.
unlabeled_dataset = dict(
    type=dataset_type,
    data_root=data_root,
    ann_file=ann_file,
    image_list=unlabeled_list,
    labeled=False,
    pipeline=unlabeled_pipeline)

# 8 labelled and 8 unlabelled refs.
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
        ann_file=ann_file,
        split='val',
        sentence='all',
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='mmsemi.ReferringMetric')
test_evaluator = val_evaluator
