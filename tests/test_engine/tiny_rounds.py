# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Rounds of training of seconds, killed or in two processes.

Tests import it; run as a script it trains by a JSON of arguments for
:func:`make_runner`.
"""
import json
import os
import signal
import sys
import uuid

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from PIL import Image

import mmsemi.datasets  # noqa: F401
import mmsemi.engine  # noqa: F401
from mmsemi.engine.loops import pseudo_mask_writer

CLASSES = ('background', 'red', 'green')
SIZE = 16


@DATASETS.register_module(force=True)
class ColorBoxes(BaseSegDataset):
    """Boxes of two colours."""

    METAINFO = dict(
        classes=CLASSES, palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0]])


@HOOKS.register_module(force=True)
class KillRoundHook(Hook):
    """Kill the process after an iteration."""

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def make_data(root, num_labeled=6, num_unlabeled=9, num_val=4):
    """Write images, masks and lists; some images lie in a sub-folder."""
    random = np.random.RandomState(0)
    names = dict(labeled=[], unlabeled=[], val=[])
    for part, number in (('labeled', num_labeled),
                         ('unlabeled', num_unlabeled), ('val', num_val)):
        for i in range(number):
            name = f'{"sub/" if i % 3 == 2 else ""}{part}{i}'
            image = random.randint(0, 80, (SIZE, SIZE, 3)).astype(np.uint8)
            mask = np.zeros((SIZE, SIZE), np.uint8)
            for label in (1, 2):
                y, x = random.randint(0, SIZE - 6, 2)
                image[y:y + 6, x:x + 6, label - 1] += 150
                mask[y:y + 6, x:x + 6] = label
            for folder, array in (('img', image), ('ann', mask)):
                path = root / folder / f'{name}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
            names[part].append(name)
    for part, found in names.items():
        (root / f'{part}.txt').write_text('\n'.join(found) + '\n')
    return str(root)


def dataset(root, part, pipeline, masks=True):
    prefix = dict(img_path='img')
    if masks:
        prefix['seg_map_path'] = 'ann'
    return dict(
        type='ColorBoxes',
        data_root=root,
        ann_file=f'{part}.txt',
        img_suffix='.png',
        data_prefix=prefix,
        pipeline=pipeline)


LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
FLIP = dict(type='RandomFlip', prob=0.5)
PACK = dict(type='PackSegInputs')
COLOR = dict(type='PhotoMetricDistortion')


def make_config(root,
                work_dir,
                loop,
                interval=2,
                num_workers=0,
                resume=False,
                kill_after=None,
                validate=True,
                save_best=False,
                accumulative_counts=1,
                **changes):
    """Return a config; ``loop`` are the fields of train_cfg."""
    norm = dict(type='BN')
    checkpoint = dict(
        type='CheckpointHook', interval=interval, by_epoch=False)
    if save_best:
        checkpoint.update(save_best='mIoU', rule='greater', max_keep_ckpts=2)
    hooks = [
        dict(type='mmsemi.IterSeedHook'),
        dict(type='mmsemi.TrainingCheckHook')
    ]
    if kill_after is not None:
        hooks.append(dict(type='KillRoundHook', after=kill_after))
    config = dict(
        model=dict(
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
                loss_decode=dict(
                    type='CrossEntropyLoss', avg_non_ignore=True)),
            test_cfg=dict(mode='whole')),
        train_dataloader=dict(
            batch_size=4,
            num_workers=num_workers,
            collate_fn=dict(type='pseudo_collate'),
            sampler=dict(
                type='mmsemi.MultiSourceSampler',
                batch_size=4,
                source_ratio=[1]),
            dataset=dict(
                type='mmsemi.MultiSourceDataset',
                datasets=[dataset(root, 'labeled', [*LOAD, FLIP, PACK])])),
        train_cfg={
            'unlabeled_dataset':
            dataset(root, 'unlabeled', [LOAD[0], PACK], False),
            'pseudo_pipeline': [*LOAD, FLIP, COLOR, PACK],
            'val_interval':
            4,
            **loop
        },
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=1e-2),
            accumulative_counts=accumulative_counts),
        param_scheduler=dict(
            type='PolyLR', eta_min=1e-4, power=0.9, by_epoch=False),
        default_hooks=dict(
            checkpoint=checkpoint, logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=hooks,
        log_processor=dict(by_epoch=False),
        default_scope='mmseg',
        work_dir=str(work_dir),
        resume=resume,
        randomness=dict(seed=0),
        experiment_name=uuid.uuid4().hex)
    if validate:
        config.update(
            val_dataloader=dict(
                batch_size=1,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dataset(root, 'val', [*LOAD, PACK])),
            val_cfg=dict(type='ValLoop'),
            val_evaluator=dict(type='IoUMetric'))
    if 'RANK' in os.environ:
        config.update(
            launcher='pytorch',
            # On a machine without GPU the model must not be given one.
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel',
                broadcast_buffers=False,
                device_ids=None))
    config.update(changes)
    return Config(config)


def make_runner(*args, **kwargs):
    return Runner.from_cfg(make_config(*args, **kwargs))


def kill_in_labeling(after):
    """Kill the process when ``after`` masks have been written."""
    save, written = pseudo_mask_writer._save_mask, []

    def save_or_die(label, path):
        save(label, path)
        written.append(path)
        if len(written) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    pseudo_mask_writer._save_mask = save_or_die


def main():
    torch.set_num_threads(1)
    settings = json.loads(sys.argv[1])
    masks = settings.pop('kill_in_labeling', None)
    if masks is not None:
        kill_in_labeling(masks)
    if 'RANK' in os.environ:
        torch.distributed.init_process_group('gloo')
    runner = make_runner(**settings)
    runner.train()
    if 'RANK' in os.environ:
        torch.save(
            runner.model.module.state_dict(),
            os.path.join(settings['work_dir'], f'rank{get_rank()}.pth'))


if __name__ == '__main__':
    Runner._log_env = lambda self, cfg: None
    # Every checkpoint would format it.
    Config.pretty_text = property(lambda self: '')
    main()
