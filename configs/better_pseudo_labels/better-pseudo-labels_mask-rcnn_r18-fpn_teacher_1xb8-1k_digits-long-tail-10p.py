# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/mask-rcnn_digits.py',
    '../_base_/datasets/digits-long-tail_instance.py',
    '../_base_/schedules/schedule_1k.py',
    '../_base_/digits-long-tail_runtime.py'
]

# Labels are smoothed towards similar classes, those of rare classes more. The
# similarities are measured before the first step.
model = dict(
    roi_head=dict(
        bbox_head=dict(
            loss_cls=dict(
                type='mmsemi.SoftCrossEntropyLoss',
                smoothing=dict(
                    type='mmsemi.SimilarityLabelSmoothing',
                    num_classes=10,
                    # Of 100 instances; rare classes have 5, and 0.06.
                    eps_0=0.03)))))
# Evaluated is the moving average of the weights, as a teacher is.
custom_hooks = [
    dict(type='mmsemi.ClassPrototypeHook'),
    dict(
        type='EMAHook',
        ema_type='MomentumAnnealingEMA',
        momentum=0.005,
        gamma=9,
        update_buffers=True)
]
