# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS as MMSEG_MODELS

from mmsemi.models.losses import OhemCrossEntropyLoss
from mmsemi.models.losses.ohem import hard_pixels
from mmsemi.registry import MODELS


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


def wave(shape, phase, amp=3.):
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (amp * torch.sin(1.1 * index + phase)).reshape(shape)


def labels():
    label = torch.arange(9).remainder(4).reshape(1, 3, 3)
    label[0, 0, 0] = 255
    return label


@pytest.mark.parametrize('min_kept, expected', [
    (0, 3.57222596),
    (1, 3.57222596),
    (6, 3.57222596),
    (7, 3.11047959),
    (8, 2.74304644),
    (9, 2.74304644),
    (100, 2.74304644),
])
def test_reference_values(min_kept, expected):
    loss = OhemCrossEntropyLoss(min_kept=min_kept)
    found = loss(wave((1, 4, 3, 3), .1), labels())
    assert found.item() == pytest.approx(expected, abs=1e-8)


def test_kept_pixels():
    valid = torch.tensor([True, True, True, True, False])
    prob = torch.tensor([.7, .71, .9, .71, .1])
    assert hard_pixels(prob, valid, .7, 1).tolist() == [
        True, False, False, False, False
    ]
    # The second smallest is shared by two.
    assert hard_pixels(prob, valid, .7, 2).tolist() == [
        True, True, False, True, False
    ]
    assert hard_pixels(prob, valid, .7, 5).tolist() == valid.tolist()
    assert not hard_pixels(prob, torch.zeros_like(valid), .7, 3).any()
    assert hard_pixels(prob, valid, .05, 0).tolist() == [False] * 5


def test_min_kept_counts_the_batch():
    """mmseg's sampler keeps so many of each image."""
    logits = wave((2, 4, 3, 3), .1)
    label = torch.cat([labels(), labels()])
    loss = OhemCrossEntropyLoss(thresh=0., min_kept=3)
    values = loss(logits, label, reduction_override='none')
    assert (values > 0).sum() == 3
    worst = F.cross_entropy(
        logits, label, ignore_index=255, reduction='none').flatten().topk(3)
    assert loss(logits, label).item() == pytest.approx(
        worst.values.mean().item())


def test_no_labels_give_zero_with_gradient():
    logits = wave((1, 4, 3, 3), .1).requires_grad_()
    loss = OhemCrossEntropyLoss(min_kept=2)(logits,
                                            torch.full((1, 3, 3), 255))
    assert loss.item() == 0.
    loss.backward()
    assert not logits.grad.any()


def test_weights_and_reductions():
    logits, label = wave((1, 4, 3, 3), .1), labels()
    plain = OhemCrossEntropyLoss(min_kept=100)
    pixels = plain(logits, label, reduction_override='none')
    assert pixels.shape == (1, 3, 3) and pixels[0, 0, 0] == 0
    assert torch.allclose(
        plain(logits, label, reduction_override='sum'), pixels.sum())
    assert torch.allclose(plain(logits, label, avg_factor=5), pixels.sum() / 5)
    weight = torch.zeros(1, 3, 3)
    weight[0, 0, 1] = 2.
    assert torch.allclose(
        plain(logits, label, weight=weight), 2 * pixels[0, 0, 1] / 8)
    by_class = OhemCrossEntropyLoss(
        min_kept=100, class_weight=[1., 0., 3., 0.], loss_weight=.5)
    factor = torch.tensor([1., 0., 3., 0.])[label.where(label != 255, 0)]
    assert torch.allclose(
        by_class(logits, label), (pixels * factor).sum() / 8 / 2)


def test_half_precision_is_computed_in_single():
    loss = OhemCrossEntropyLoss(min_kept=6)
    found = loss(wave((1, 4, 3, 3), .1).half(), labels())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(3.57222596, abs=5e-3)


def test_is_a_loss_of_mmseg_heads():
    head = MMSEG_MODELS.build(
        dict(
            type='FCNHead',
            in_channels=4,
            channels=4,
            num_convs=1,
            concat_input=False,
            num_classes=3,
            loss_decode=dict(
                type='mmsemi.OhemCrossEntropyLoss', min_kept=2)))
    assert isinstance(head.loss_decode, OhemCrossEntropyLoss)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    sample = SegDataSample(
        gt_sem_seg=PixelData(data=torch.tensor([[[0, 1], [2, 255]]])))
    losses = head.loss_by_feat(torch.randn(1, 3, 2, 2), [sample])
    assert set(losses) == {'loss_ohem', 'acc_seg'}
    assert MODELS.get('OhemCrossEntropyLoss') is OhemCrossEntropyLoss
    assert 'min_kept=2' in repr(head.loss_decode)


@pytest.mark.parametrize('field, value', [('thresh', 1.1), ('thresh', -.1),
                                          ('min_kept', -1),
                                          ('min_kept', .5)])
def test_bad_arguments(field, value):
    with pytest.raises(ValueError, match=f'{field}={value}'):
        OhemCrossEntropyLoss(**{field: value})


def test_one_channel_is_refused():
    with pytest.raises(ValueError, match='out_channels=2'):
        OhemCrossEntropyLoss()(torch.zeros(1, 1, 2, 2),
                               torch.zeros(1, 2, 2).long())
