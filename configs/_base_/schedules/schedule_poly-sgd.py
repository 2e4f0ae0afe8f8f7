# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# UniMatch, and what is built like it: SGD for 8 labelled images a step, the
# backbone a tenth of the rest, polynomial decay. Configs set max_iters, in
# train_cfg and below.
max_iters = 40000
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# Step t > 0 takes lr * (1 - (t - 1) / max_iters) ** 0.9, steps 0 and 1 take
# lr, because UniMatch sets the rate after the step. mmengine's polynomial
# ends one step before `end`, hence the 2.
param_scheduler = dict(
    type='PolyLR',
    power=0.9,
    eta_min=0.,
    by_epoch=False,
    begin=1,
    end=max_iters + 2)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
