# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask2former_r50_lvis.py',
    '../_base_/datasets/lvis_v1_instance.py',
    '../_base_/schedules/schedule_180k_cosine.py',
    '../_base_/lvis_runtime.py'
]

# Labels are smoothed towards similar classes, those of rare classes more. The
# similarities are measured before the first step.
model = dict(
    panoptic_head=dict(
        loss_cls=dict(
            type='mmsemi.SoftCrossEntropyLoss',
            smoothing=dict(
                type='mmsemi.SimilarityLabelSmoothing', num_classes=1203))))
custom_hooks = [dict(type='mmsemi.ClassPrototypeHook')]

auto_scale_lr = dict(enable=False, base_batch_size=16)
