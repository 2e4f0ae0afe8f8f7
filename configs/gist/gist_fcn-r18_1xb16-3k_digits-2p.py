# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fcn_digits.py',
    '../_base_/datasets/rounds_digits_semantic.py',
    '../_base_/schedules/schedule_3k_rounds.py',
    '../_base_/digits_semantic_runtime.py'
]

# GIST: four stages of 500 steps, each once from human and once from
# pseudo-labels, 9,000 steps in all. 8 of the 40 labelled scenes are held out
# to choose by, and learned from in a closing stage, of no paper.
train_cfg = dict(
    _delete_=True,
    type='mmsemi.IterativeSelfTrainingLoop',
    schedule='greedy',
    round_iters=3000,
    stage_iters=500,
    stages=4,
    beam=1,
    held_out_fraction=0.2,
    closing_iters=2000,
    unlabeled_dataset=_base_.unlabeled_dataset,
    pseudo_pipeline=_base_.pseudo_pipeline,
    labeling=_base_.labeling,
    val_interval=3000)
