# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
# For every config of mmseg's segmenters, supervised ones too; see
# default_runtime.py. A model with teacher and student also needs
#   custom_hooks = [dict(type='mmsemi.TeacherUpdateHook')]
default_scope = 'mmseg'
custom_imports = dict(imports=['mmsemi'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    iter_seed=dict(type='mmsemi.IterSeedHook'),
    training_check=dict(type='mmsemi.TrainingCheckHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=2000,
        max_keep_ckpts=2,
        save_best='mIoU',
        rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(
    type='LogProcessor',
    window_size=50,
    by_epoch=False,
    mean_pattern=r'.*(loss|time|data_time|grad_norm|pseudo/).*')

log_level = 'INFO'
load_from = None
resume = False
