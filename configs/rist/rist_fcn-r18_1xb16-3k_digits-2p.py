# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fcn_digits.py',
    '../_base_/datasets/rounds_digits_semantic.py',
    '../_base_/schedules/schedule_3k_rounds.py',
    '../_base_/digits_semantic_runtime.py'
]

# RIST: four stages of 500 steps, from human or from pseudo-labels by a coin.
# The closing stage, of no paper, mends what wrong labels taught; 9,000 steps
# in all.
train_cfg = dict(
    _delete_=True,
    type='mmsemi.IterativeSelfTrainingLoop',
    schedule='random',
    round_iters=3000,
    stage_iters=500,
    stages=4,
    human_prob=0.5,
    closing_iters=4000,
    unlabeled_dataset=_base_.unlabeled_dataset,
    pseudo_pipeline=_base_.pseudo_pipeline,
    labeling=_base_.labeling,
    val_interval=3000)
