# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/rounds_voc.py',
    '../_base_/schedules/schedule_poly-sgd.py', '../_base_/semantic_runtime.py'
]

# 80 passes, 16 images a step: over 1,323 labelled images; 4 times and 4,629
# reliable ones; 7 times and 9,259 others.
# The released code labels with the weights that are best on the validation
# set (select='best'); the last ones are used here.
train_cfg = dict(
    _delete_=True,
    type='mmsemi.SelfTrainingLoop',
    select_reliable=True,
    round_iters=[6615, 49605, 92600],
    unlabeled_dataset=_base_.unlabeled_dataset,
    pseudo_pipeline=_base_.pseudo_pipeline,
    labeling=dict(num_workers=4),
    val_interval=2000)
# Over each round.
param_scheduler = dict(
    _delete_=True, type='PolyLR', power=0.9, eta_min=0., by_epoch=False)

model = _base_.model
model.data_preprocessor.size = (321, 321)
auto_scale_lr = dict(enable=False, base_batch_size=16)
