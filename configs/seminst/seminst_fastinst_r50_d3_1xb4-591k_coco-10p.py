# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/fastinst_r50_d3.py',
    '../_base_/datasets/semi_coco_fastinst.py',
    '../_base_/schedules/schedule_591k_two-stage_fastinst.py',
    '../_base_/default_runtime.py',
    '../_base_/semi_runtime.py'
]

segmentor = _base_.model
segmentor.panoptic_head.semantic_branch = dict(
    text_embeddings='data/coco/class_names_scibert.pt')
model = dict(
    _delete_=True,
    type='mmsemi.SemInst',
    segmentor=segmentor,
    pseudo_label_pipeline=[
        dict(type='mmsemi.FilterByScore', score_thr=0.7),
        dict(type='mmsemi.FilterByMaskCells', min_cells=5., stride=8)
    ])
val_cfg = dict(type='mmsemi.MultiViewValLoop')
auto_scale_lr = dict(enable=False, base_batch_size=4)
