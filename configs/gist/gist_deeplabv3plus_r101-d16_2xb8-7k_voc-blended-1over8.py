# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/deeplabv3plus_r101-d16.py',
    '../_base_/datasets/rounds_voc.py',
    '../_base_/schedules/schedule_poly-sgd.py', '../_base_/semantic_runtime.py'
]

# GIST. 80 passes, 16 images a step, over 1,323 labelled images, of which a
# fifth is held out to choose by. Then ten stages, 4,630 steps each on human
# and on pseudo-labels: together as long as the second training of ST.
train_cfg = dict(
    _delete_=True,
    type='mmsemi.IterativeSelfTrainingLoop',
    schedule='greedy',
    round_iters=6615,
    stage_iters=4630,
    stages=10,
    beam=1,
    held_out_fraction=0.2,
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
