# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# CPS: SGD for 8 labelled images a step, one rate for all layers, polynomial
# decay. Configs set max_iters, in train_cfg and below.
max_iters = 40000
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# Step t takes lr * (1 - t / max_iters) ** 0.9. mmengine's polynomial ends one
# step before `end`, hence the 1.
param_scheduler = dict(
    type='PolyLR',
    power=0.9,
    eta_min=0.,
    by_epoch=False,
    begin=0,
    end=max_iters + 1)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.0025, momentum=0.9, weight_decay=0.0001),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.))
