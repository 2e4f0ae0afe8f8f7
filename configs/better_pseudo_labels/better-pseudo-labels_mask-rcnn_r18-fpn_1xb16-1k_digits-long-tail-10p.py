# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask-rcnn_digits.py',
    '../_base_/datasets/semi_digits-long-tail_instance.py',
    '../_base_/schedules/schedule_1k.py',
    '../_base_/digits-long-tail_runtime.py', '../_base_/semi_runtime.py'
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
        'better-pseudo-labels_mask-rcnn_r18-fpn_teacher_1xb8-1k_'
        'digits-long-tail-10p/iter_1000.pth',
        guided_steps=150,
        momentum=0.005),
    pseudo_label_pipeline=[
        dict(
            type='mmsemi.CalibrateScores',
            calibrator=dict(num_classes=10, mode='platt', bg_mass='drop')),
        dict(type='mmsemi.FilterByScore', score_thr=0.7)
    ],
    # Boxes and masks of the teacher are not as good as those of labels.
    unsup_weight=0.5,
    predict_on='teacher',
    hidden_label_interval=10)
val_cfg = dict(type='mmsemi.MultiViewValLoop')
custom_hooks = _base_.custom_hooks
custom_hooks[-1].update(interval=500)
custom_hooks.append(
    # Once the teacher follows the student, its calibration moves.
    dict(
        type='mmsemi.CalibrationHook',
        dataloader=_base_.calibration_dataloader,
        interval=250))
