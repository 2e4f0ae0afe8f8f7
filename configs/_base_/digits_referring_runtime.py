# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# referring_runtime.py for trainings of minutes.
_base_ = './semantic_runtime.py'
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(interval=500, max_keep_ckpts=2, save_best='oIoU'))
