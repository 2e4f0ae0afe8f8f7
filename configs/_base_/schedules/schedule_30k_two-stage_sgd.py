# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# Stage 1 as in the base; stage 2 are 10 passes over 5,458 others,
# two in a batch, with a warm-up and a lower rate at 80 %.
_base_ = './schedule_30k_sgd.py'
train_cfg = dict(
    _delete_=True,
    type='mmsemi.TwoStageTrainLoop',
    stage1_iters=30400,
    stage2_iters=27290,
    stage1_batch_size=4,
    stage2_param_scheduler=[
        dict(
            type='LinearLR',
            start_factor=0.001,
            by_epoch=False,
            begin=0,
            end=500),
        dict(
            type='MultiStepLR',
            begin=0,
            end=27290,
            by_epoch=False,
            milestones=[21832],
            gamma=0.1)
    ],
    val_interval=2000)
