# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# SGD for COCO, 10 shots: 200 passes over 500 labelled images
# in batches of 4.
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=25000, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.001,
        by_epoch=False,
        begin=0,
        end=500),
    dict(
        type='MultiStepLR',
        begin=0,
        end=25000,
        by_epoch=False,
        milestones=[16666, 22222],
        gamma=0.1)
]

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001))
