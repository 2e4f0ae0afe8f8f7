# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = './fastinst_r50-d-dcn_d3.py'

model = dict(panoptic_head=dict(transformer_decoder=dict(num_layers=1)))
