# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Evaluation of an mmseg model from a config."""
import pickle

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.utils import register_all_modules

from mmsemi.apis import prepare_testing, run_testing

CLASSES = ('left', 'right')
NUM_IMAGES = 3


@pytest.fixture
def config(tmp_path):
    """Config: A tiny FCN and three images with masks."""
    register_all_modules(init_default_scope=False)
    init_default_scope('mmseg')
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        mask = np.zeros((40, 60), np.uint8)
        mask[:, 30:] = 1
        mask[:2] = 255
        image = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        mmcv.imwrite(image, str(tmp_path / 'images' / f'{i}.png'))
        mmcv.imwrite(mask, str(tmp_path / 'masks' / f'{i}.png'))
    norm = dict(type='BN')
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(
                    type='SegDataPreProcessor', size=(64, 64)),
                backbone=dict(
                    type='ResNetV1c',
                    depth=18,
                    stem_channels=8,
                    base_channels=8,
                    norm_cfg=norm),
                decode_head=dict(
                    type='FCNHead',
                    in_channels=64,
                    in_index=3,
                    channels=8,
                    num_convs=1,
                    num_classes=len(CLASSES),
                    norm_cfg=norm),
                test_cfg=dict(mode='whole')),
            test_dataloader=dict(
                batch_size=1,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(
                    type='BaseSegDataset',
                    metainfo=dict(classes=CLASSES),
                    data_root=str(tmp_path),
                    img_suffix='.png',
                    data_prefix=dict(img_path='images', seg_map_path='masks'),
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='LoadAnnotations'),
                        dict(type='PackSegInputs')
                    ])),
            test_cfg=dict(type='TestLoop'),
            test_evaluator=dict(type='mmsemi.SemanticMetric')))


@pytest.fixture
def checkpoint(config, tmp_path):
    """str: Weights of the model."""
    torch.manual_seed(0)
    path = tmp_path / 'weights.pth'
    torch.save(
        dict(state_dict=MODELS.build(config.model).state_dict()), path)
    return str(path)


def test_metrics_and_predictions(config, checkpoint, tmp_path):
    config.test_evaluator = [
        config.test_evaluator,
        dict(type='IoUMetric', prefix='mmseg')
    ]
    cfg = prepare_testing(config, checkpoint, work_dir=tmp_path / 'work_dir')
    metrics = run_testing(cfg, predictions=tmp_path / 'all.pkl')
    for ours, theirs in dict(PA='aAcc', MA='mAcc', mIoU='mIoU').items():
        assert metrics[ours] == pytest.approx(
            metrics[f'mmseg/{theirs}'], abs=0.0051)
    predictions = pickle.loads((tmp_path / 'all.pkl').read_bytes())
    assert len(predictions) == NUM_IMAGES
    found = np.stack([p['pred_sem_seg']['data'][0] for p in predictions])
    assert found.dtype == np.uint8 and found.shape == (NUM_IMAGES, 40, 60)
    assert not {'seg_logits', 'gt_sem_seg'} & set(predictions[0])
    truth = np.arange(60) >= 30
    right = (found == truth)[:, 2:].mean()
    assert metrics['PA'] == pytest.approx(100 * right)
