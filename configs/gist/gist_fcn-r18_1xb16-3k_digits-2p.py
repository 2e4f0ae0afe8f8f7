# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fcn_digits.py',
    '../_base_/datasets/rounds_digits_semantic.py',
    '../_base_/schedules/schedule_3k.py',
    '../_base_/digits_semantic_runtime.py'
]

# GIST: four stages of 500 steps, from human and from pseudo-labels in turn,
# 7,000 steps in all. 8 of the 40 labelled scenes are held out to choose by.
train_cfg = dict(
    _delete_=True,
    type='mmsemi.IterativeSelfTrainingLoop',
    schedule='greedy',
    round_iters=3000,
    stage_iters=500,
    stages=4,
    beam=1,
    held_out_fraction=0.2,
    unlabeled_dataset=_base_.unlabeled_dataset,
    pseudo_pipeline=_base_.pseudo_pipeline,
    labeling=_base_.labeling,
    val_interval=3000)
# Without `end`: over 3,000 steps in the first training, 500 in a stage.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, eta_min_ratio=0.02)
]
