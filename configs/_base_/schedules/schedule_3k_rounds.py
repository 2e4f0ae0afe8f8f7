# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# schedule_3k.py for rounds of training: the cosine spans each of them.
_base_ = './schedule_3k.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, eta_min_ratio=0.02)
]
