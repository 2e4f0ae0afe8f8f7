# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask-rcnn_r50-fpn_trashcan.py',
    '../_base_/datasets/semi_trashcan_instance.py',
    '../_base_/schedules/schedule_30k_two-stage_sgd.py',
    '../_base_/default_runtime.py',
    '../_base_/semi_runtime.py'
]

segmentor = _base_.model
segmentor.roi_head.bbox_head.update(
    type='mmsemi.SemanticShared2FCBBoxHead',
    cls_predictor_cfg=dict(
        type='mmsemi.SemanticClsPredictor',
        text_embeddings='data/trashcan/class_names_scibert.pt'))
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
