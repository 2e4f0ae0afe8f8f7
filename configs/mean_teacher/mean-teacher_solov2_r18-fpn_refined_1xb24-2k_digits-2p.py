# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/solov2_digits.py',
    '../_base_/datasets/semi_digits_instance.py',
    '../_base_/schedules/schedule_2k.py', '../_base_/digits_runtime.py',
    '../_base_/semi_runtime.py'
]

# Mask proposals redraw the pseudo-masks that are left: a mask becomes the
# proposal that overlaps it most. They come from
#   python tools/generate_proposals.py data/digits/train \
#       --backend felzenszwalb --out data/digits/proposals
model = dict(
    _delete_=True,
    type='mmsemi.SemiInstanceSegmentor',
    segmentor=_base_.model,
    teacher=dict(
        momentum=0.005,
        warm_up_gamma=9,
        burn_in_steps=600,
        average_burn_in=True),
    pseudo_label_pipeline=[
        dict(type='mmsemi.FilterByScore', score_thr=0.15),
        dict(type='mmsemi.RemoveDuplicates', iou_thr=0.5),
        dict(
            type='mmsemi.SkipUncertainImages',
            low_thr=0.15,
            high_thr=0.5,
            skip_empty=True),
        dict(type='mmsemi.RefineByProposals', strategy='iom')
    ],
    unsup_weight=dict(weight=2.0, ramp='linear', ramp_steps=200),
    hidden_label_interval=10)
val_cfg = dict(type='mmsemi.MultiViewValLoop')
custom_hooks = _base_.custom_hooks
custom_hooks[-1].update(interval=1000)

unlabeled_dataset = _base_.unlabeled_dataset
unlabeled_dataset.pipeline[-1].unsup_teacher.insert(
    0, dict(type='mmsemi.LoadMaskProposals', store='data/digits/proposals'))
train_dataloader = dict(
    dataset=dict(datasets=[_base_.labeled_dataset, unlabeled_dataset]))
