# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask-rcnn_r50-fpn_lvis.py',
    '../_base_/datasets/semi_lvis_v1_instance.py',
    '../_base_/schedules/schedule_180k_cosine.py',
    '../_base_/lvis_runtime.py',
    '../_base_/semi_runtime.py'
]

segmentor = _base_.model
segmentor.roi_head.type = 'mmsemi.SoftLabelRoIHead'
segmentor.roi_head.bbox_head.type = 'mmsemi.SoftLabelShared2FCBBoxHead'
segmentor.roi_head.bbox_head.loss_cls.type = 'mmsemi.SoftCrossEntropyLoss'
model = dict(
    _delete_=True,
    type='mmsemi.GuidedDistillation',
    segmentor=segmentor,
    soft_labels=True,
    teacher=dict(
        # What the config of this name with 'teacher' in it ends with.
        checkpoint='work_dirs/'
        'better-pseudo-labels_mask-rcnn_r50-fpn_teacher_8xb2-180k_lvis-v1/'
        'iter_180000.pth',
        guided_steps=25000),
    pseudo_label_pipeline=[
        # Before the filter: rare classes, of which a teacher is too little
        # sure, would not pass it.
        dict(
            type='mmsemi.CalibrateScores',
            # The background weighs as much as a class: kept, it would make
            # the student less sure, and its teacher in turn.
            calibrator=dict(num_classes=1203, bg_mass='drop')),
        dict(type='mmsemi.FilterByScore', score_thr=0.7),
        dict(type='mmsemi.FilterByMaskCells', min_cells=5., stride=4)
    ])
custom_hooks = [
    *_base_.custom_hooks,
    # Once the teacher follows the student, its calibration moves.
    dict(
        type='mmsemi.CalibrationHook',
        dataloader=_base_.calibration_dataloader,
        interval=2000)
]

# SGD for 16 labelled images a step, as in mmdet.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001))

val_cfg = dict(type='mmsemi.MultiViewValLoop')
auto_scale_lr = dict(enable=False, base_batch_size=32)
