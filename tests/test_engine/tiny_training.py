# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A real training of seconds: SOLOv2 on digits, killed or in two processes.

Tests import it; run as a script it trains by a JSON of arguments for
:func:`make_runner`, with the process dying after iteration ``kill_after`` or,
under torchrun's variables, as one of several.
"""
import json
import os
import signal
import sys
import uuid

import numpy as np
import torch
from mmdet.models import ResNet
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner

from mmsemi.datasets import split_stem

VIEWS = ['sup', 'unsup_teacher', 'unsup_student']


@MODELS.register_module(force=True)
class NoisyResNet(ResNet):
    """Draws from NumPy and torch in training, as dropout would."""

    def forward(self, x):
        outs = super().forward(x)
        if not self.training:
            return outs
        return tuple(out *
                     (1 + 0.1 * torch.rand_like(out) + 0.1 * np.random.rand())
                     for out in outs)


@HOOKS.register_module(force=True)
class KillHook(Hook):
    """Kill the process as the system would, without a chance to tidy up."""

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module(force=True)
class StarveHook(Hook):
    """Leave the second process without pseudo-labels; note how many."""

    # Before the teacher's update, which levels the statistics.
    priority = 'VERY_HIGH'

    def __init__(self):
        self.per_image = []
        self.running_mean = None

    def before_train(self, runner):
        if get_rank() == 1:
            pipeline = runner.model.module.pseudo_label_pipeline
            pipeline.stages[0].score_thr = 1.

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.per_image.append(float(outputs['pseudo/per_image']))
        self.running_mean = runner.model.module.student.backbone.bn1. \
            running_mean.clone()


def model_config(burn_in_steps=0):
    norm_cfg = dict(type='BN')
    return dict(
        type='mmsemi.SemiInstanceSegmentor',
        segmentor=dict(
            type='SOLOv2',
            data_preprocessor=dict(
                type='DetDataPreprocessor',
                mean=[114.] * 3,
                std=[60.] * 3,
                bgr_to_rgb=True,
                pad_mask=True,
                pad_size_divisor=16),
            backbone=dict(
                type='NoisyResNet',
                depth=18,
                base_channels=8,
                stem_channels=8,
                num_stages=2,
                strides=(1, 2),
                dilations=(1, 1),
                out_indices=(0, 1),
                norm_cfg=norm_cfg,
                norm_eval=False),
            neck=dict(
                type='FPN', in_channels=[8, 16], out_channels=8, num_outs=2),
            mask_head=dict(
                type='SOLOV2Head',
                num_classes=10,
                in_channels=8,
                feat_channels=8,
                stacked_convs=1,
                strides=[4, 4],
                scale_ranges=((1, 24), (16, 64)),
                num_grids=[6, 4],
                cls_down_index=0,
                mask_feature_head=dict(
                    feat_channels=8,
                    start_level=0,
                    end_level=1,
                    out_channels=8,
                    mask_stride=4,
                    norm_cfg=norm_cfg),
                norm_cfg=norm_cfg,
                loss_mask=dict(type='DiceLoss', use_sigmoid=True),
                loss_cls=dict(type='FocalLoss', use_sigmoid=True)),
            test_cfg=dict(
                nms_pre=10,
                score_thr=0.,
                mask_thr=0.5,
                filter_thr=0.,
                kernel='gaussian',
                sigma=2.0,
                max_per_img=4)),
        teacher=dict(momentum=0.1, burn_in_steps=burn_in_steps),
        pseudo_label_pipeline=[
            dict(type='mmsemi.FilterByScore', score_thr=0.),
            dict(type='mmsemi.FilterByArea', min_area=4)
        ])


def dataset_config(data_root, unlabeled):
    geometry = dict(
        type='mmsemi.RandomAffine', max_rotate_degree=10., min_area=16)
    packed = dict(type='mmsemi.PackDetInputs')
    color = dict(type='mmsemi.StrongColor')
    branches = dict(sup=[color, packed])
    if unlabeled:
        branches = dict(
            unsup_teacher=[packed], unsup_student=[geometry, color, packed])
    load = [dict(type='LoadImageFromFile')]
    if not unlabeled:
        load += [dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
    stem = split_stem('instances_train', 50)
    suffix = '-unlabeled' if unlabeled else ''
    return dict(
        type='mmsemi.DigitsInstanceDataset',
        data_root=data_root,
        ann_file=f'annotations/{stem}{suffix}.json',
        data_prefix=dict(img='train/'),
        pipeline=[
            *load, geometry,
            dict(type='mmsemi.MultiBranch', branch_field=VIEWS, **branches)
        ])


def make_runner(data_root,
                work_dir,
                max_iters=8,
                interval=4,
                num_workers=0,
                accumulative_counts=2,
                resume=False,
                burn_in_steps=0,
                kill_after=None,
                starve=False,
                more_hooks=()):
    hooks = [
        dict(type='mmsemi.IterSeedHook'),
        dict(type='mmsemi.TeacherUpdateHook'),
        dict(type='mmsemi.PseudoLabelMonitorHook', interval=3),
        *more_hooks,
    ]
    if kill_after is not None:
        hooks.append(dict(type='KillHook', after=kill_after))
    if starve:
        hooks.append(dict(type='StarveHook'))
    distributed = 'RANK' in os.environ
    return Runner(
        model=model_config(burn_in_steps),
        work_dir=work_dir,
        train_dataloader=dict(
            batch_size=4,
            num_workers=num_workers,
            collate_fn=dict(type='pseudo_collate'),
            sampler=dict(
                type='mmsemi.MultiSourceSampler',
                batch_size=4,
                source_ratio=[1, 1]),
            dataset=dict(
                type='mmsemi.MultiSourceDataset',
                datasets=[
                    dataset_config(data_root, False),
                    dataset_config(data_root, True)
                ])),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=1e-2),
            accumulative_counts=accumulative_counts,
            clip_grad=dict(max_norm=10)),
        param_scheduler=dict(
            type='CosineAnnealingLR', T_max=max_iters, by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', interval=interval, by_epoch=False)),
        custom_hooks=hooks,
        log_processor=dict(by_epoch=False),
        default_scope='mmdet',
        launcher='pytorch' if distributed else 'none',
        resume=resume,
        randomness=dict(seed=0),
        experiment_name=uuid.uuid4().hex,
        # On a machine without GPU the model must not be given one.
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel',
                broadcast_buffers=False,
                device_ids=None)))


def main():
    torch.set_num_threads(1)
    settings = json.loads(sys.argv[1])
    if 'RANK' in os.environ:
        torch.distributed.init_process_group('gloo')
    runner = make_runner(**settings)
    runner.train()
    if settings.get('starve'):
        found = [h for h in runner.hooks if isinstance(h, StarveHook)][0]
        torch.save(
            dict(
                state_dict=runner.model.module.state_dict(),
                per_image=found.per_image,
                running_mean=found.running_mean),
            os.path.join(settings['work_dir'], f'rank{get_rank()}.pth'))


if __name__ == '__main__':
    Runner._log_env = lambda self, cfg: None
    main()
