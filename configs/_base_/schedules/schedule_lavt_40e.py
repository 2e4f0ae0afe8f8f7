# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# LAVT: AdamW, polynomial decay to zero in every step. 53,000 steps are 40
# passes over the 42,404 references of RefCOCO (unc) with 32 at a time; with
# other data, configs set max_iters in train_cfg and below.
max_iters = 53000
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1325)
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
# In the names of parameters, 'norm' is only in those of the backbone: the
# decoder's are called bn, BERT's LayerNorm. Both decay in LAVT, too.
no_decay = dict(decay_mult=0.)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=5e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            norm=no_decay,
            absolute_pos_embed=no_decay,
            relative_position_bias_table=no_decay)))
