# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# SemiRES with LAVT: CPI-U, then PWA. Unlike in LAVT's own training, BERT drops
# out and the supervised loss is a mean over pixels, as in the released code.
_base_ = './lavt_swin-b.py'

segmentor = _base_.model
segmentor.text_encoder.train_dropout = True
segmentor.decode_head.loss_reduction = 'pixels'
model = dict(
    _delete_=True,
    type='mmsemi.SemiRES',
    segmentor=segmentor,
    # The paper's decay of 0.996; the released code has 0.9996.
    teacher=dict(momentum=0.004, warm_up_gamma=0.),
    pseudo_label_pipeline=[
        dict(type='mmsemi.RefineByProposals', strategy='cpi_u'),
        dict(type='mmsemi.PixelWeighting')
    ])

# For configs to put in front of the teacher's packing. Made by
#   python tools/generate_proposals.py data/coco/train2014 --backend sam \
#       --out data/coco/proposals/sam-vit-huge_train2014
# which needs the images with references only: see docs/referring.md.
proposals = dict(
    type='mmsemi.LoadMaskProposals',
    store='data/coco/proposals/sam-vit-huge_train2014')
