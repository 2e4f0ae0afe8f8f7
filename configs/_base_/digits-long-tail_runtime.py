# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# digits_runtime.py for the metric of LVIS.
_base_ = './default_runtime.py'
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(
        interval=500, max_keep_ckpts=2, save_best='lvis/segm_AP'))
