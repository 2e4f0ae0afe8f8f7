# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""From config, checkpoint, image and sentences to masks."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope

from mmsemi.apis import init_model, predict_referred, segment_referred
from mmsemi.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = ['the red seven', 'the topmost digit', 'the big two']
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='mmseg.Resize', scale=(64, 64), keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]


@pytest.fixture
def config():
    found = Config.fromfile(ROOT / 'configs/_base_/models/lavt_digits.py')
    found.merge_from_dict(
        dict(
            default_scope='mmseg',
            model=dict(
                text_encoder=dict(config=dict(num_hidden_layers=1)),
                backbone=dict(
                    patch_size=4,
                    strides=(4, 2, 2, 2),
                    depths=(1, 1, 1, 1),
                    embed_dims=8),
                decode_head=dict(in_channels=[8, 16, 32, 64], channels=8)),
            test_dataloader=dict(
                dataset=dict(
                    type='BaseSegDataset',
                    metainfo=dict(classes=('background', 'referred')),
                    pipeline=PIPELINE))))
    return found


@pytest.fixture
def checkpoint(config, tmp_path):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    path = tmp_path / 'model.pth'
    torch.save(dict(state_dict=MODELS.build(config.model).state_dict()), path)
    return path


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), pixels)
    return path, pixels


def test_one_call(config, checkpoint, image):
    path, pixels = image
    masks = segment_referred(config, checkpoint, path, SENTENCES)
    assert masks.shape == (3, 40, 52) and masks.dtype == torch.bool
    model = init_model(config, checkpoint)
    for source in (path, str(path), pixels):
        again = predict_referred(model, source, SENTENCES, batch_size=2)
        assert torch.equal(again, masks)
    one = predict_referred(model, path, SENTENCES[1])
    assert one.shape == (40, 52) and torch.equal(one, masks[1])
    assert predict_referred(model, path, SENTENCES[:1]).shape == (1, 40, 52)


def test_teacher_and_student(config, checkpoint, image):
    config.model = dict(
        type='mmsemi.FixMatch', mix=None, segmentor=config.model)
    weights = torch.load(checkpoint, weights_only=True)['state_dict']
    for value in weights.values():
        if value.is_floating_point():
            value.mul_(1.5)
    both = MODELS.build(config.model)
    both.student.load_state_dict(weights)
    torch.save(dict(state_dict=both.state_dict()), checkpoint)
    found = {
        part: init_model(config, checkpoint, part)
        for part in ('teacher', 'student')
    }
    assert not torch.equal(
        found['teacher'].predictor.decode_head.conv_seg.weight,
        found['student'].predictor.decode_head.conv_seg.weight)
    for part, model in found.items():
        masks = predict_referred(model, image[0], SENTENCES)
        assert torch.equal(
            masks,
            segment_referred(config, checkpoint, image[0], SENTENCES, part))


def test_wrong_input(config, checkpoint, image, tmp_path):
    model = init_model(config, checkpoint)
    path, pixels = image
    for sentences in ([], '', ['red', ' ']):
        with pytest.raises(ValueError, match='none may be blank'):
            predict_referred(model, path, sentences)
    with pytest.raises(TypeError, match='a string and a sequence of strings'):
        segment_referred(config, checkpoint, path, ['red', 3])
    with pytest.raises(ValueError, match='batch_size=0'):
        predict_referred(model, path, 'red', 0)
    with pytest.raises(FileNotFoundError, match='There is no image'):
        predict_referred(model, tmp_path / 'none.png', 'red')
    with pytest.raises(ValueError, match=r'shape \(40, 52\)'):
        predict_referred(model, pixels[..., 0], 'red')
    with pytest.raises(TypeError, match='Linear reads no sentences'):
        predict_referred(torch.nn.Linear(1, 1), path, 'red')
    model.cfg.pop('test_pipeline')
    with pytest.raises(ValueError, match='no test_dataloader'):
        predict_referred(model, path, 'red')
