# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './fastinst_r101_d3.py'

model = dict(panoptic_head=dict(transformer_decoder=dict(num_layers=1)))
