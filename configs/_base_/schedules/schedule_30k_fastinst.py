# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# FastInst's optimizer for TrashCan, 10 %: 200 passes over 607 labelled images
# in batches of 4.
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=30400, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# FastInst's shares of the training.
param_scheduler = dict(
    type='MultiStepLR',
    begin=0,
    end=30400,
    by_epoch=False,
    milestones=[27022, 29274],
    gamma=0.1)

# No clipping. Norms and embeddings do not decay.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(
            backbone=dict(lr_mult=0.1), aux_query=dict(decay_mult=0.0))))
