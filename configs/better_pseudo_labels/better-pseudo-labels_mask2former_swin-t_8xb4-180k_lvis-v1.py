# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask2former_swin-t_lvis.py',
    '../_base_/datasets/semi_lvis_v1_instance.py',
    '../_base_/schedules/schedule_180k_cosine_swin-t.py',
    '../_base_/lvis_runtime.py',
    '../_base_/semi_runtime.py'
]

segmentor = _base_.model
segmentor.panoptic_head.type = 'mmsemi.SoftLabelMask2FormerHead'
segmentor.panoptic_head.loss_cls.type = 'mmsemi.SoftCrossEntropyLoss'
# One label per query.
segmentor.panoptic_fusion_head.type = 'mmsemi.QueryFusionHead'
model = dict(
    _delete_=True,
    type='mmsemi.GuidedDistillation',
    segmentor=segmentor,
    soft_labels=True,
    teacher=dict(
        # What the config of this name with 'teacher' in it ends with.
        checkpoint='work_dirs/'
        'better-pseudo-labels_mask2former_swin-t_teacher_8xb2-180k_lvis-v1/'
        'iter_180000.pth',
        guided_steps=25000),
    pseudo_label_pipeline=[
        # Before the filter: rare classes, of which a teacher is too little
        # sure, would not pass it.
        dict(
            type='mmsemi.CalibrateScores',
            calibrator=dict(num_classes=1203)),
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

val_cfg = dict(type='mmsemi.MultiViewValLoop')
auto_scale_lr = dict(enable=False, base_batch_size=32)
