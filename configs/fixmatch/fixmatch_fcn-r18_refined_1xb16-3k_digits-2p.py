# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fcn_digits.py',
    '../_base_/datasets/semi_digits_semantic.py',
    '../_base_/schedules/schedule_3k.py',
    '../_base_/digits_semantic_runtime.py',
    '../_base_/semi_runtime.py'
]

# Mask proposals redraw the pseudo-labels: a piece of a class becomes the
# proposal that overlaps it most. They come from
#   python tools/generate_proposals.py data/digits/train \
#       --backend felzenszwalb --out data/digits/proposals
model = dict(
    _delete_=True,
    type='mmsemi.FixMatch',
    segmentor=_base_.model,
    teacher=dict(
        momentum=0.005,
        warm_up_gamma=9,
        burn_in_steps=1200,
        average_burn_in=True),
    pseudo_label_pipeline=[
        dict(
            type='mmsemi.RefineByProposals', strategy='iom', num_classes=11),
        dict(type='mmsemi.KeepConfidentPixels', conf_thr=0.9)
    ])
val_cfg = dict(type='mmsemi.MultiViewValLoop')

unlabeled_dataset = _base_.unlabeled_dataset
unlabeled_dataset.pipeline[-1].unsup_teacher.insert(
    0, dict(type='mmsemi.LoadMaskProposals', store='data/digits/proposals'))
train_dataloader = dict(
    dataset=dict(datasets=[_base_.labeled_dataset, unlabeled_dataset]))
