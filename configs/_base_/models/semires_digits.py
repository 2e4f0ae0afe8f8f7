# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# SemiRES with the small LAVT; it burns in within the training.
_base_ = './lavt_digits.py'

model = dict(
    _delete_=True,
    type='mmsemi.SemiRES',
    segmentor=_base_.model,
    teacher=dict(
        momentum=0.005,
        warm_up_gamma=9,
        burn_in_steps=1200,
        average_burn_in=True),
    pseudo_label_pipeline=[
        dict(type='mmsemi.RefineByProposals', strategy='cpi_u'),
        dict(type='mmsemi.PixelWeighting')
    ])

# For configs to put in front of the teacher's packing: proposals that need
# neither network nor weights. Made by
#   python tools/generate_proposals.py data/digits_referring/train \
#       --backend felzenszwalb --out data/digits_referring/proposals
proposals = dict(
    type='mmsemi.LoadMaskProposals', store='data/digits_referring/proposals')
