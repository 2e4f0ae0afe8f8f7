# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# AdamW for 16 labelled images a step, the backbone a tenth of the rest, and a
# cosine decay to a hundredth.
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=180000, val_interval=10000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0,
        end=1000),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=1000,
        end=180000,
        T_max=179000,
        eta_min_ratio=0.01)
]

# Longer keys win, so 'backbone' also finds 'student.backbone'.
embedding = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW',
        lr=0.0001,
        weight_decay=0.05,
        eps=1e-8,
        betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1, decay_mult=1.0),
            query_embed=embedding,
            query_feat=embedding,
            level_embed=embedding),
        norm_decay_mult=0.0),
    clip_grad=dict(max_norm=0.01, norm_type=2))
