# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# schedule_2k.py in two stages of 1,500 and 500 steps: the cosine spans each of
# them. Batches of stage 1 are those of supervised training.
_base_ = './schedule_2k.py'
train_cfg = dict(
    _delete_=True,
    type='mmsemi.TwoStageTrainLoop',
    stage1_iters=1500,
    stage2_iters=500,
    stage1_batch_size=8,
    val_interval=500)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, eta_min_ratio=0.02)
]
