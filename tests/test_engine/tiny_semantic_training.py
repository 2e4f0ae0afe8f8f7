# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A semantic training of seconds, on boxes of two colours.

Tests import it; run as a script it trains by a JSON of arguments for
:func:`make_runner`, with the process dying after iteration ``kill_after``.
"""
import json
import os
import signal
import sys
import uuid

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from PIL import Image

import mmsemi.datasets  # noqa: F401
import mmsemi.engine  # noqa: F401
import mmsemi.methods  # noqa: F401

CLASSES = ('background', 'red', 'green')
VIEWS = ['sup', 'unsup_teacher', 'unsup_student', 'unsup_student_2']
SIZE = 16


@DATASETS.register_module(force=True)
class RedAndGreen(BaseSegDataset):
    """Notes which images are drawn."""

    METAINFO = dict(
        classes=CLASSES, palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0]])

    drawn = []

    def prepare_data(self, idx):
        type(self).drawn.append(int(idx))
        return super().prepare_data(idx)


@HOOKS.register_module(force=True)
class KillSemanticHook(Hook):
    """Kill the process after an iteration."""

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def make_data(root, num_labeled=8, num_unlabeled=9):
    """Write images and masks; the labelled images 0 and 1 show no green."""
    random = np.random.RandomState(0)
    for part, number in (('labeled', num_labeled), ('unlabeled',
                                                    num_unlabeled)):
        names = [f'{part}{i}' for i in range(number)]
        for i, name in enumerate(names):
            image = random.randint(0, 80, (SIZE, SIZE, 3)).astype(np.uint8)
            mask = np.zeros((SIZE, SIZE), np.uint8)
            for label in (1, ) if i < 2 else (1, 2):
                y, x = random.randint(0, SIZE - 6, 2)
                image[y:y + 6, x:x + 6, label - 1] += 150
                mask[y:y + 6, x:x + 6] = label
            for folder, array in (('img', image), ('ann', mask)):
                (root / folder).mkdir(exist_ok=True, parents=True)
                Image.fromarray(array).save(root / folder / f'{name}.png')
        (root / f'{part}.txt').write_text('\n'.join(names) + '\n')
    return str(root)


def dataset(root, part, pipeline, masks=True):
    prefix = dict(img_path='img')
    if masks:
        prefix['seg_map_path'] = 'ann'
    return dict(
        type='RedAndGreen' if part == 'labeled' else 'BaseSegDataset',
        data_root=root,
        ann_file=f'{part}.txt',
        img_suffix='.png',
        data_prefix=prefix,
        pipeline=pipeline,
        **({} if part == 'labeled' else dict(metainfo=RedAndGreen.METAINFO)))


def make_config(root,
                work_dir,
                model=None,
                max_iters=8,
                interval=4,
                num_workers=0,
                resume=False,
                kill_after=None,
                threshold_hook=None):
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    packed = dict(type='mmsemi.PackSegInputs')
    color = dict(type='mmsemi.StrongColor')
    flip = dict(type='RandomFlip', prob=0.5)
    norm = dict(type='BN')
    hooks = [
        dict(type='mmsemi.IterSeedHook'),
        dict(type='mmsemi.TeacherUpdateHook'),
        dict(type='mmsemi.PseudoLabelMonitorHook', interval=2)
    ]
    if threshold_hook is not None:
        hooks.append(
            dict(type='mmsemi.ClassThresholdHook', **threshold_hook))
    if kill_after is not None:
        hooks.append(dict(type='KillSemanticHook', after=kill_after))
    segmentor = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[60.] * 3,
            std=[60.] * 3,
            size=(SIZE, SIZE),
            seg_pad_val=255),
        backbone=dict(
            type='UNet',
            base_channels=4,
            num_stages=2,
            strides=(1, 1),
            enc_num_convs=(1, 1),
            dec_num_convs=(1, ),
            downsamples=(True, ),
            enc_dilations=(1, 1),
            dec_dilations=(1, ),
            norm_cfg=norm),
        decode_head=dict(
            type='FCNHead',
            in_channels=4,
            in_index=-1,
            channels=4,
            num_convs=1,
            concat_input=False,
            dropout_ratio=0.1,
            num_classes=3,
            norm_cfg=norm,
            loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
        test_cfg=dict(mode='whole'))
    sources = [
        dataset(root, 'labeled', [
            *load, flip,
            dict(
                type='mmsemi.MultiBranch',
                branch_field=VIEWS,
                sup=[color, packed])
        ]),
        dataset(root, 'unlabeled', [
            load[0], flip,
            dict(
                type='mmsemi.MultiBranch',
                branch_field=VIEWS,
                unsup_teacher=[packed],
                unsup_student=[color, packed],
                unsup_student_2=[color, packed])
        ], False)
    ]
    return Config(
        dict(
            model={
                **dict(type='mmsemi.FixMatch'),
                **(model or {}), 'segmentor': segmentor
            },
            train_dataloader=dict(
                batch_size=5,
                num_workers=num_workers,
                collate_fn=dict(type='pseudo_collate'),
                sampler=dict(
                    type='mmsemi.MultiSourceSampler',
                    batch_size=5,
                    source_ratio=[2, 3]),
                dataset=dict(
                    type='mmsemi.MultiSourceDataset', datasets=sources)),
            val_dataloader=dict(
                batch_size=1,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dataset(root, 'labeled', [*load, packed])),
            val_cfg=dict(type='ValLoop'),
            val_evaluator=dict(type='IoUMetric'),
            train_cfg=dict(
                type='IterBasedTrainLoop',
                max_iters=max_iters,
                val_interval=10 * max_iters,
                val_begin=10 * max_iters),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
            param_scheduler=dict(
                type='PolyLR', eta_min=1e-4, power=0.9, by_epoch=False),
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook', interval=interval, by_epoch=False),
                logger=dict(type='LoggerHook', interval=1)),
            custom_hooks=hooks,
            log_processor=dict(by_epoch=False),
            default_scope='mmseg',
            work_dir=str(work_dir),
            resume=resume,
            randomness=dict(seed=0),
            experiment_name=uuid.uuid4().hex))


def make_runner(*args, **kwargs):
    return Runner.from_cfg(make_config(*args, **kwargs))


def main():
    torch.set_num_threads(1)
    make_runner(**json.loads(sys.argv[1])).train()


if __name__ == '__main__':
    Runner._log_env = lambda self, cfg: None
    main()
