# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import nn

from mmsemi.models.dense_prediction import DenseTestSettings, predict_dense

CLASSES = 3
SLIDE = dict(mode='slide', crop_size=(32, 32), stride=(20, 24))


@pytest.fixture(autouse=True)
def mmseg_scope():
    register_all_modules(init_default_scope=False)
    init_default_scope('mmseg')


def make_model(test_cfg=None, seed=0, **head):
    """A small ResNet with FCN head, batch statistics not all alike."""
    torch.manual_seed(seed)
    model = MODELS.build(
        dict(
            type='mmseg.EncoderDecoder',
            backbone=dict(
                type='ResNetV1c',
                depth=18,
                stem_channels=8,
                base_channels=8,
                norm_cfg=dict(type='BN')),
            decode_head={
                **dict(
                    type='FCNHead',
                    in_channels=64,
                    in_index=3,
                    channels=8,
                    num_convs=1,
                    num_classes=CLASSES,
                    norm_cfg=dict(type='BN'),
                    align_corners=False),
                **head
            },
            test_cfg=ConfigDict(test_cfg or dict(mode='whole'))))
    # Random weights alone leave one class the winner everywhere.
    last = model.eval().decode_head.conv_seg
    nn.init.normal_(last.weight, std=5.)
    metas = [dict(img_shape=(64, 64), ori_shape=(64, 64))] * 2
    with torch.no_grad():
        last.bias -= model.inference(images(), metas).mean((0, 2, 3))
    return model


def make_samples(num=2, **more):
    """Samples of padded images: 48 x 56 valid in 64 x 64 pixels."""
    return [
        SegDataSample(
            metainfo=dict(
                img_shape=(48, 56),
                ori_shape=(60, 70),
                pad_shape=(64, 64),
                img_padding_size=(0, 8, 0, 16),
                **more)) for _ in range(num)
    ]


def images(num=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((num, 3, 64, 64), generator=generator)


@torch.no_grad()
def both(model, inputs, samples=None):
    """Predict by ourselves, then by mmseg."""
    ours = predict_dense(model, inputs, copy.deepcopy(samples))
    return ours, model.predict(inputs, copy.deepcopy(samples))


@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), SLIDE])
@pytest.mark.parametrize('samples', [
    None,
    make_samples(),
    make_samples(flip=True, flip_direction='horizontal'),
],
                         ids=['none', 'padded', 'flipped'])
@pytest.mark.parametrize('head', [
    dict(align_corners=True),
    dict(num_classes=2, out_channels=1, threshold=0.5)
],
                         ids=['corners', 'one channel'])
def test_equals_mmseg(test_cfg, samples, head):
    found, expected = both(make_model(test_cfg, **head), images(), samples)
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours.seg_logits.data, theirs.seg_logits.data)
        assert torch.equal(ours.pred_sem_seg.data, theirs.pred_sem_seg.data)
    labels = torch.stack([sample.pred_sem_seg.data for sample in found])
    assert len(labels.unique()) > 1


def test_slide_differs_from_whole():
    whole = predict_dense(make_model(), images())
    slide = predict_dense(make_model(SLIDE), images())
    assert not torch.equal(whole[0].seg_logits.data, slide[0].seg_logits.data)


@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), SLIDE])
def test_metainfo_is_left_alone(test_cfg):
    samples = make_samples()
    found = predict_dense(make_model(test_cfg), images(), samples)
    assert found[0] is samples[0]
    assert samples[0].metainfo == make_samples()[0].metainfo


def test_size_does_not_depend_on_missing_ground_truth():
    """Padded in training mode, mmseg leaves no pad_shape without labels."""
    model = make_model()
    samples = [
        SegDataSample(
            metainfo=dict(
                img_shape=torch.Size((48, 56)),
                ori_shape=(48, 56),
                pad_shape=None,
                padding_size=(0, 8, 0, 16)))
    ]
    with torch.no_grad():
        found, = predict_dense(model, images(1), samples)
        logits, = predict_dense(model, images(1))
    torch.testing.assert_close(found.seg_logits.data,
                               logits.seg_logits.data[:, :48, :56])


@pytest.mark.parametrize('border', ['shift', 'truncate'])
def test_softmax_is_averaged_in_windows(border):
    """By hand, on two windows side by side."""
    model = make_model(
        dict(
            mode='slide',
            crop_size=(64, 48),
            stride=(64, 32),
            border=border,
            average='softmax'))
    inputs = images(1)
    with torch.no_grad():
        found, = predict_dense(model, inputs)
        total, times = torch.zeros((1, CLASSES, 64, 64)), torch.zeros(64)
        for left, right in dict(
                shift=[(0, 48), (16, 64)],
                truncate=[(0, 48), (32, 64)])[border]:
            crop = inputs[..., left:right]
            logits = model.encode_decode(crop,
                                         [dict(img_shape=crop.shape[2:])])
            total[..., left:right] += logits.softmax(1)
            times[left:right] += 1
    expected = (total / times)[0]
    torch.testing.assert_close(found.seg_logits.data.exp(), expected)
    assert torch.equal(found.pred_sem_seg.data, expected.argmax(0)[None])


def test_ensemble_averages_probabilities():
    first, second = make_model(seed=0), make_model(SLIDE, seed=5)
    inputs = images()
    with torch.no_grad():
        found = predict_dense([first, second], inputs)
        parts = [predict_dense(model, inputs) for model in (first, second)]
        alone = predict_dense([first], inputs)
    for sample, *ones in zip(found, *parts):
        expected = sum(one.seg_logits.data.softmax(0) for one in ones) / 2
        torch.testing.assert_close(sample.seg_logits.data.exp(), expected)
        assert torch.equal(sample.pred_sem_seg.data, expected.argmax(0)[None])
    assert torch.equal(alone[0].seg_logits.data, parts[0][0].seg_logits.data)


def test_ensemble_is_resized_as_probabilities():
    """The mean of a model and itself is its own softmax, then resized."""
    model = make_model()
    with torch.no_grad():
        found, = predict_dense([model, model], images(1), make_samples(1))
        dense, = predict_dense(model, images(1))
    expected = nn.functional.interpolate(
        dense.seg_logits.data.softmax(0)[None, :, :48, :56], (60, 70),
        mode='bilinear')[0]
    assert found.pred_sem_seg.shape == (60, 70)
    torch.testing.assert_close(found.seg_logits.data.exp(), expected)
    assert torch.equal(found.pred_sem_seg.data, expected.argmax(0)[None])


def test_ensemble_of_one_channel():
    head = dict(num_classes=2, out_channels=1, threshold=0.5)
    first, second = make_model(seed=0, **head), make_model(seed=5, **head)
    with torch.no_grad():
        found, = predict_dense([first, second], images(1))
        parts = [predict_dense(m, images(1))[0] for m in (first, second)]
    # mmseg stores the sigmoid.
    mean = sum(part.seg_logits.data for part in parts) / 2
    torch.testing.assert_close(found.seg_logits.data, mean)
    assert torch.equal(found.pred_sem_seg.data, (mean > 0.5).float())


def test_cascades_are_segmenters_too():
    head = dict(
        in_channels=64,
        in_index=3,
        channels=8,
        num_classes=CLASSES,
        norm_cfg=dict(type='BN'))
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmseg.CascadeEncoderDecoder',
            num_stages=2,
            backbone=dict(
                type='ResNetV1c',
                depth=18,
                stem_channels=8,
                base_channels=8,
                norm_cfg=dict(type='BN')),
            decode_head=[
                dict(type='FCNHead', num_convs=1, **head),
                dict(type='OCRHead', ocr_channels=8, **head)
            ],
            test_cfg=ConfigDict(SLIDE))).eval()
    ours, theirs = both(model, images(), make_samples())
    assert torch.equal(ours[1].seg_logits.data, theirs[1].seg_logits.data)


@pytest.mark.parametrize('test_cfg', [None, {}, dict(mode='whole')])
def test_defaults_are_whole(test_cfg):
    assert DenseTestSettings.from_config(test_cfg) == DenseTestSettings()


def test_windows_may_be_square():
    settings = DenseTestSettings.from_config(
        dict(mode='slide', crop_size=32, stride=[16, 8], other=1))
    assert settings.crop_size == (32, 32) and settings.stride == (16, 8)


@pytest.mark.parametrize('test_cfg, message', [
    (dict(mode='tiles'), "test_cfg.mode='tiles'; allowed are 'whole' and"),
    (dict(mode='slide', stride=2), 'needs test_cfg.crop_size'),
    (dict(mode='slide', crop_size=2), 'needs test_cfg.stride'),
    (dict(mode='slide', crop_size=2, stride=0), 'test_cfg.stride=0'),
    (dict(mode='slide', crop_size=2, stride=3), 'would be left out'),
    (dict(SLIDE, border='pad'), "test_cfg.border='pad'"),
    (dict(SLIDE, average='max'), "test_cfg.average='max'"),
    (dict(border='truncate'), "test_cfg.mode is 'whole'"),
    (dict(mode='whole', average='softmax'), "test_cfg.mode is 'whole'"),
])
def test_wrong_test_cfg(test_cfg, message):
    with pytest.raises(ValueError, match=message):
        DenseTestSettings.from_config(test_cfg)


def test_wrong_models():
    with pytest.raises(ValueError, match='at least one model'):
        predict_dense([], images())
    with pytest.raises(TypeError, match='Linear has no encode_decode'):
        predict_dense(nn.Linear(1, 1), images())
    pair = [make_model(), make_model(num_classes=4)]
    with pytest.raises(ValueError, match='3 and 4 channels'):
        predict_dense(pair, images())
