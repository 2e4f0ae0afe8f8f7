# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import pytest
import torch
import torch.nn.functional as F

from mmsemi.models.losses import (LossNormalizer, dense_cross_entropy,
                                  full_precision, normalize_loss,
                                  soft_cross_entropy)

KEPT, VALID, RESCALED, ALL = (
    LossNormalizer.KEPT, LossNormalizer.VALID, LossNormalizer.KEPT_RESCALED,
    LossNormalizer.ALL)


def wave(shape, phase, amp=3.):
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amp * torch.sin(1.1 * index + phase)).reshape(shape)


def reference_label():
    label = torch.arange(9).remainder(4).reshape(1, 3, 3)
    label[0, 0, 0] = 255
    return label


@pytest.mark.parametrize('normalizer, expected', [(ALL, 2.43826350),
                                                  (KEPT, 2.74304644),
                                                  (VALID, 2.43826350),
                                                  (RESCALED, 3.08592725)])
def test_reference_values(normalizer, expected):
    loss = dense_cross_entropy(
        wave((1, 4, 3, 3), .1), reference_label(), normalizer=normalizer)
    assert loss.item() == pytest.approx(expected, abs=1e-7)


def test_same_as_torch_and_as_mmseg():
    from mmseg.models.losses import CrossEntropyLoss
    logits, label = wave((1, 4, 3, 3), .1), reference_label()
    assert torch.allclose(
        dense_cross_entropy(logits, label),
        F.cross_entropy(logits, label, ignore_index=255))
    for avg_non_ignore, normalizer in ((False, ALL), (True, KEPT)):
        mmseg_loss = CrossEntropyLoss(avg_non_ignore=avg_non_ignore)
        assert torch.allclose(
            dense_cross_entropy(logits, label, normalizer=normalizer),
            mmseg_loss(logits, label, ignore_index=255))


@pytest.mark.parametrize('normalizer, expected', [
    (KEPT, (2 + .5 * 6) / 2),
    (VALID, (2 + .5 * 6) / 4),
    (RESCALED, (2 + .5 * 6) / 2 * 6 / 2),
    (ALL, (2 + .5 * 6) / 6),
])
def test_normalizers_by_hand(normalizer, expected):
    """Two of six pixels are padding, one of them with a weight."""
    pixel_loss = torch.tensor([[[2., 4., 6.], [8., 10., 12.]]])
    weight = torch.tensor([[[1., 0., .5], [0., 1., 0.]]])
    valid = torch.tensor([[[True, True, True], [True, False, False]]])
    loss = normalize_loss(pixel_loss, weight, valid, normalizer)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize('normalizer', list(LossNormalizer))
@pytest.mark.parametrize('case', ['weight', 'label', 'valid', 'no pixel'])
def test_nothing_kept_gives_zero_with_gradient(normalizer, case):
    shape = (0 if case == 'no pixel' else 1, 2, 2)
    logits = torch.ones(shape[0], 3, 2, 2, requires_grad=True)
    label = torch.full(shape, 255 if case == 'label' else 0)
    weight = torch.full(shape, 0. if case == 'weight' else 1.)
    valid = torch.full(shape, case != 'valid')
    if case == 'no pixel' and normalizer is ALL:
        logits, label, weight, valid = (
            torch.ones(1, 3, 2, 2, requires_grad=True), label.new_zeros(
                1, 2, 2), weight.new_zeros(1, 2, 2), valid.new_ones(1, 2, 2))
    loss = dense_cross_entropy(logits, label, weight, valid, normalizer)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None and (logits.grad == 0).all()


@pytest.mark.parametrize('normalizer', list(LossNormalizer))
@pytest.mark.parametrize('left_out_by', ['weight', 'valid', 'label'])
def test_infinite_loss_of_a_left_out_pixel(normalizer, left_out_by):
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 1] = -torch.inf
    logits.requires_grad_()
    label = torch.zeros(1, 1, 2, dtype=torch.long)
    weight = torch.ones(1, 1, 2)
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    dict(weight=weight, valid=valid, label=label)[left_out_by][0, 0, 1] = \
        255 if left_out_by == 'label' else 0
    loss = dense_cross_entropy(logits, label, weight, valid, normalizer)
    loss.backward()
    assert 0 < loss.item() < 2 and logits.grad.isfinite().all()
    assert (logits.grad[..., 1] == 0).all()


def test_half_precision_is_computed_in_single():
    logits = torch.tensor([[0.], [-12.]], dtype=torch.float16).reshape(
        1, 2, 1, 1).requires_grad_()
    label = torch.zeros(1, 1, 1, dtype=torch.long)
    loss = dense_cross_entropy(logits, label)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(6.14e-6, rel=.02)
    loss.backward()
    assert logits.grad.dtype == torch.float16
    # 70,000 pixels are more than half precision can count.
    many = torch.zeros(1, 2, 200, 350, dtype=torch.float16)
    loss = dense_cross_entropy(many, torch.zeros(1, 200, 350).long())
    assert loss.item() == pytest.approx(math.log(2))
    assert full_precision(many).dtype == torch.float32
    assert full_precision(many.double()).dtype == torch.float64


def test_weight_in_another_precision():
    logits, label = wave((1, 4, 3, 3), .1), reference_label()
    loss = dense_cross_entropy(logits, label, torch.ones(1, 3, 3))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(2.74304644, abs=1e-7)


def test_own_ignore_index():
    logits, label = wave((1, 4, 3, 3), .1), reference_label()
    label[label == 255] = 9
    loss = dense_cross_entropy(logits, label, ignore_index=9)
    assert loss.item() == pytest.approx(2.74304644, abs=1e-7)


def test_soft_targets():
    logits, teacher = wave((2, 4, 3, 3), .9), wave((2, 4, 3, 3), .1)
    prob = teacher.softmax(1)
    loss = soft_cross_entropy(logits, prob)
    assert torch.allclose(
        loss, F.cross_entropy(logits, prob, reduction='none'))
    divergence = soft_cross_entropy(logits, prob, divergence=True)
    assert torch.allclose(
        divergence,
        F.kl_div(logits.log_softmax(1), prob, reduction='none').sum(1))
    same = soft_cross_entropy(teacher, prob, divergence=True)
    assert torch.allclose(same, torch.zeros_like(same), atol=1e-12)


def test_certain_targets_are_finite():
    prob = torch.tensor([1., 0.]).reshape(1, 2, 1, 1)
    logits = torch.zeros(1, 2, 1, 1, requires_grad=True)
    loss = soft_cross_entropy(logits, prob, divergence=True)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert logits.grad.flatten().tolist() == [-.5, .5]


@pytest.mark.parametrize('name', ['kept', 'valid', 'kept_rescaled', 'all'])
def test_names(name):
    assert LossNormalizer.from_config(name, 'normalizer').value == name


@pytest.mark.parametrize('value', ['mean', None, 3])
def test_unknown_name(value):
    with pytest.raises(ValueError, match=r"model.normalizer=.*'kept', 'valid"):
        LossNormalizer.from_config(value, 'model.normalizer')
