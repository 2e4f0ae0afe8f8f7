# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# default_runtime.py for the metric of LVIS.
_base_ = './default_runtime.py'
default_hooks = dict(checkpoint=dict(save_best='lvis/segm_AP'))
