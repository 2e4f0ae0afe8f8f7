# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# FastInst's own schedule: 50 passes over COCO in batches of 16.
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=368750, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# Of its 50 passes, the last 5.6 and 1.9 have lower rates.
param_scheduler = dict(
    type='MultiStepLR',
    begin=0,
    end=368750,
    by_epoch=False,
    milestones=[327778, 355092],
    gamma=0.1)

# No clipping. Norms and embeddings do not decay.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(
            backbone=dict(lr_mult=0.1), aux_query=dict(decay_mult=0.0))))
