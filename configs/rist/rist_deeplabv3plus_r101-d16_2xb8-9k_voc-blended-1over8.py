# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/deeplabv3plus_r101-d16.py',
    '../_base_/datasets/rounds_voc.py',
    '../_base_/schedules/schedule_poly-sgd.py', '../_base_/semantic_runtime.py'
]

# RIST. 80 passes, 16 images a step, over 1,323 labelled images. Then ten
# stages of 9,260 steps, on human or on pseudo-labels by a coin: together as
# long as the second training of ST.
train_cfg = dict(
    _delete_=True,
    type='mmsemi.IterativeSelfTrainingLoop',
    schedule='random',
    round_iters=6615,
    stage_iters=9260,
    stages=10,
    human_prob=0.5,
    unlabeled_dataset=_base_.unlabeled_dataset,
    pseudo_pipeline=_base_.pseudo_pipeline,
    labeling=dict(num_workers=4),
    val_interval=2000)
# Over the first training and over each one of a stage.
param_scheduler = dict(
    _delete_=True, type='PolyLR', power=0.9, eta_min=0., by_epoch=False)

model = _base_.model
model.data_preprocessor.size = (321, 321)
auto_scale_lr = dict(enable=False, base_batch_size=16)
