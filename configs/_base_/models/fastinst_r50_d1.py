# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# FastInst-D1, with a single decoder layer.
_base_ = './fastinst_r50_d3.py'

model = dict(panoptic_head=dict(transformer_decoder=dict(num_layers=1)))
