# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# FastInst's optimizer for COCO, 10 %: 200 passes over 11,829 labelled images
# in batches of 4.
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=591600, val_interval=10000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# FastInst's shares of the training.
param_scheduler = dict(
    type='MultiStepLR',
    begin=0,
    end=591600,
    by_epoch=False,
    milestones=[525867, 569689],
    gamma=0.1)

# No clipping. Norms and embeddings do not decay.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(
            backbone=dict(lr_mult=0.1), aux_query=dict(decay_mult=0.0))))
