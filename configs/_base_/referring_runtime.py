# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# semantic_runtime.py, with the checkpoint kept that has the best oIoU.
_base_ = './semantic_runtime.py'
default_hooks = dict(checkpoint=dict(save_best='oIoU'))
