# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# For every config, supervised ones too. Iterations, not epochs: the
# labelled and the unlabelled source have no epoch in common.
default_scope = 'mmdet'
custom_imports = dict(imports=['mmsemi'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    # Makes every draw in the model a function of seed, rank and iteration,
    # which is what makes a resumed run equal an uninterrupted one.
    iter_seed=dict(type='mmsemi.IterSeedHook'),
    training_check=dict(type='mmsemi.TrainingCheckHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=5000,
        max_keep_ckpts=3,
        save_best='coco/segm_mAP',
        rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
# Figures on pseudo-labels vary from batch to batch as losses do.
log_processor = dict(
    type='LogProcessor',
    window_size=50,
    by_epoch=False,
    mean_pattern=r'.*(loss|time|data_time|grad_norm|pseudo/).*')

log_level = 'INFO'
load_from = None
resume = False
