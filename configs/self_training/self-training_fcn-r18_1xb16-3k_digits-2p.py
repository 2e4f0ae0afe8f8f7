# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fcn_digits.py',
    '../_base_/datasets/rounds_digits_semantic.py',
    '../_base_/schedules/schedule_3k_rounds.py',
    '../_base_/digits_semantic_runtime.py'
]

# Two rounds, each as long as the supervised training: shorter ones do not
# get far enough for their labels to teach. The closing round, of no paper,
# mends what wrong labels taught; 9,000 steps in all.
train_cfg = dict(
    _delete_=True,
    type='mmsemi.SelfTrainingLoop',
    round_iters=3000,
    closing_iters=3000,
    unlabeled_dataset=_base_.unlabeled_dataset,
    pseudo_pipeline=_base_.pseudo_pipeline,
    source_ratio=[1, 1],
    labeling=_base_.labeling,
    val_interval=3000)
