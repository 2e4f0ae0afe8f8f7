# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# SemiRES: LAVT's schedule with 12 + 12 references a step. 140,000 steps are 40
# passes over the unlabelled references of RefCOCO at 1 %, and up to two more
# where there are fewer. Validation follows every pass.
_base_ = './schedule_lavt_40e.py'

max_iters = 140000
train_cfg = dict(max_iters=max_iters, val_interval=3500)
val_cfg = dict(type='mmsemi.MultiViewValLoop')
param_scheduler = dict(end=max_iters + 1)
auto_scale_lr = dict(enable=False, base_batch_size=24)
