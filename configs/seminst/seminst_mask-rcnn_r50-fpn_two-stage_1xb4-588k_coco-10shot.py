# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/semi_coco_instance.py',
    '../_base_/schedules/schedule_25k_two-stage_sgd.py',
    '../_base_/default_runtime.py',
    '../_base_/semi_runtime.py'
]

labeled_dataset = _base_.labeled_dataset
labeled_dataset.ann_file = (
    'semi_anns/instances_train2017.seed0-fold0@10shot.json')
unlabeled_dataset = _base_.unlabeled_dataset
unlabeled_dataset.ann_file = (
    'semi_anns/instances_train2017.seed0-fold0@10shot-unlabeled.json')
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(batch_size=4, source_ratio=[1, 1]),
    dataset=dict(datasets=[labeled_dataset, unlabeled_dataset]))

model = dict(
    _delete_=True,
    type='mmsemi.SemInst',
    segmentor=_base_.model,
    pseudo_label_pipeline=[
        dict(type='mmsemi.FilterByScore', score_thr=0.7),
        dict(type='mmsemi.FilterByMaskCells', min_cells=5., stride=8)
    ])
val_cfg = dict(type='mmsemi.MultiViewValLoop')
auto_scale_lr = dict(enable=False, base_batch_size=4)
