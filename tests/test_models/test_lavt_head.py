# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""LAVT's decoder and its loss, with exact values."""
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmsemi.models.decode_heads import LAVTHead
from mmsemi.models.losses import ClassWeightedCrossEntropyLoss

BN = dict(norm_cfg=dict(type='BN'))


def maps():
    return [
        torch.randn(2, channels, side, side)
        for channels, side in ((4, 16), (6, 8), (8, 4), (10, 2))
    ]


def test_decoder_by_its_steps():
    torch.manual_seed(0)
    head = LAVTHead((4, 6, 8, 10), **BN)
    head.init_weights()
    assert head.channels == 5 and head.conv_seg.bias is not None
    shapes = [tuple(step[i].conv.weight.shape[:2])
              for step in head.steps for i in (0, 1)]
    # The coarser map's channels come first.
    assert shapes == [(5, 18), (5, 5), (5, 11), (5, 5), (5, 9), (5, 5)]
    inputs = maps()
    x = inputs[3]
    for step, finer in zip(head.steps, inputs[2::-1]):
        x = F.interpolate(
            x, finer.shape[2:], mode='bilinear', align_corners=True)
        x = torch.cat([x, finer], 1)
        for layer in step:
            x = F.conv2d(x, layer.conv.weight, padding=1)
            x = (x - x.mean((0, 2, 3), keepdim=True)) / (
                x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
            x = x.relu()
    expected = F.conv2d(x, head.conv_seg.weight, head.conv_seg.bias)
    torch.testing.assert_close(
        head(inputs), expected, atol=1e-5, rtol=1e-4)


def test_initial_weights_are_those_of_torch():
    """mmcv's would have a standard deviation of sqrt(2 / fan_out)."""
    head = LAVTHead((64, 64), 64, **BN)
    head.init_weights()
    weight = head.steps[0][1].conv.weight
    assert weight.abs().max() <= 1 / math.sqrt(64 * 9)
    expected = 1 / math.sqrt(3 * 64 * 9)
    assert weight.std().item() == pytest.approx(expected, rel=.03)


@pytest.mark.parametrize('reduction, expected', [
    (None, math.log(2)),
    ('weights', math.log(2)),
    # Three pixels of the object among eight that are known.
    ('pixels', math.log(2) * (3 * 1.1 + 5 * .9) / 8),
])
def test_loss_of_equal_logits(reduction, expected):
    head = LAVTHead((4, 6), loss_reduction=reduction, **BN)
    truth = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 255, 255]])
    sample = SegDataSample(gt_sem_seg=PixelData(data=truth[None]))
    losses = head.loss_by_feat(torch.zeros(1, 2, 1, 3), [sample])
    assert losses['loss_ce'].item() == pytest.approx(expected, abs=1e-6)


def test_loss_is_torchs_weighted_mean():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 2, 3, 4), torch.randint(0, 2, (2, 3, 4))
    label[0, 0] = 255
    weight = torch.tensor([.9, 1.1])
    loss = ClassWeightedCrossEntropyLoss((.9, 1.1))
    expected = F.cross_entropy(logits, label, weight, ignore_index=255)
    torch.testing.assert_close(loss(logits, label), expected)
    half = ClassWeightedCrossEntropyLoss((.9, 1.1), loss_weight=.5)
    torch.testing.assert_close(half(logits, label), expected / 2)
    mean = ClassWeightedCrossEntropyLoss((.9, 1.1), 'pixels')
    pixels = F.cross_entropy(
        logits, label, weight, ignore_index=255, reduction='none')
    torch.testing.assert_close(mean(logits, label), pixels.sum() / 20)
    twice = mean(logits, label, weight=torch.full((2, 3, 4), 2.))
    torch.testing.assert_close(twice, pixels.sum() / 10)
    assert mean(logits.bfloat16(), label).dtype == torch.float32


@pytest.mark.parametrize('reduction', ['weights', 'pixels'])
def test_nothing_known(reduction):
    loss = ClassWeightedCrossEntropyLoss((.9, 1.1), reduction)
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    value = loss(logits, torch.full((1, 2, 2), 255))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()


def test_wrong_settings():
    with pytest.raises(ValueError, match="reduction.*='mean'; allowed"):
        LAVTHead(loss_reduction='mean', **BN)
    with pytest.raises(ValueError, match="loss_reduction='pixels'.*remove"):
        LAVTHead(
            loss_reduction='pixels',
            loss_decode=dict(type='mmseg.CrossEntropyLoss'),
            **BN)
    with pytest.raises(ValueError, match='two maps'):
        LAVTHead((4, ), **BN)
    with pytest.raises(ValueError, match='class_weight'):
        ClassWeightedCrossEntropyLoss((0., 1.))
    with pytest.raises(ValueError, match='2 numbers, but .* 3 channels'):
        ClassWeightedCrossEntropyLoss((.9, 1.1))(
            torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).long())


def test_another_loss():
    head = LAVTHead((4, 6), loss_decode=dict(type='mmseg.DiceLoss'), **BN)
    assert type(head.loss_decode).__name__ == 'DiceLoss'
