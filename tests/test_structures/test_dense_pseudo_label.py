# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmengine.structures import BaseDataElement

from mmsemi.structures.dense_pseudo_label import (IGNORE_LABEL,
                                                  DensePseudoLabel,
                                                  DenseTargets, valid_pixels)


def logits_of(prob):
    return torch.tensor(prob).log().reshape(1, -1, 1, 1)


def sample(*shape, **metainfo):
    return BaseDataElement(metainfo=dict(img_shape=shape, **metainfo))


def targets(with_prob=False):
    valid = torch.tensor([[[True, True], [True, False]]] * 2)
    logits = torch.arange(24.).reshape(2, 3, 2, 2).sin()
    return DenseTargets.from_logits(logits, valid, with_prob)


def test_likeliest_class_and_its_probability():
    found = DenseTargets.from_logits(
        logits_of([.2, .7, .1]), torch.ones(1, 1, 1, dtype=torch.bool), True)
    assert found.label.tolist() == [[[1]]] and found.label.dtype == torch.int64
    assert found.confidence.item() == pytest.approx(.7)
    assert found.prob.flatten().tolist() == pytest.approx([.2, .7, .1])
    assert found.weight.tolist() == [[[1.]]]


def test_no_weight_on_padding_and_no_gradient():
    logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    valid = torch.tensor([[[True, False]]])
    found = DenseTargets.from_logits(logits, valid)
    assert found.weight.tolist() == [[[1., 0.]]]
    assert found.prob is None
    assert not found.confidence.requires_grad


@pytest.mark.parametrize('dtype, expected', [
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
])
def test_precision_is_at_least_single(dtype, expected):
    found = DenseTargets.from_logits(
        torch.ones(1, 2, 2, 2, dtype=dtype),
        torch.ones(1, 2, 2, dtype=torch.bool), True)
    for values in (found.confidence, found.weight, found.prob):
        assert values.dtype == expected


def test_half_precision_confidence_is_not_rounded_up():
    """In half precision a confidence of 0.99996 would be 1."""
    logits = torch.tensor([10., 0.], dtype=torch.float16).reshape(1, 2, 1, 1)
    found = DenseTargets.from_logits(
        logits, torch.ones(1, 1, 1, dtype=torch.bool))
    assert found.confidence.item() == pytest.approx(.9999546, abs=1e-7)


@pytest.mark.parametrize('with_prob', [False, True])
def test_images_apart_and_together(with_prob):
    whole = targets(with_prob)
    parts = whole.unbind()
    assert [type(part) for part in parts] == [DensePseudoLabel] * 2
    assert ('prob' in parts[0]) is with_prob
    assert parts[1].label.shape == (2, 2)
    # Nothing is copied.
    assert parts[1].weight.data_ptr() == whole.weight[1].data_ptr()
    again = DenseTargets.from_pseudo_labels(parts)
    for name, value in vars(whole).items():
        other = getattr(again, name)
        assert other is value is None or torch.equal(other, value)


def test_prob_of_a_part_of_the_batch_is_dropped():
    parts = targets(True).unbind()
    del parts[0].prob
    assert DenseTargets.from_pseudo_labels(parts).prob is None


def test_replace_leaves_the_original():
    whole = targets()
    changed = whole.replace(weight=torch.zeros(2, 2, 2))
    assert changed.weight.sum() == 0 and whole.weight.sum() == 6
    assert changed.label is whole.label


def test_image_and_padding():
    found = valid_pixels([sample(2, 3), sample(1, 2, 3)], (2, 4))
    assert found.dtype == torch.bool
    assert found.int().tolist() == [[[1, 1, 1, 0], [1, 1, 1, 0]],
                                    [[1, 1, 0, 0], [0, 0, 0, 0]]]


def test_shape_of_a_batch_of_images_will_do():
    found = valid_pixels([sample(1, 1)], torch.zeros(1, 3, 2, 2).shape)
    assert found.sum() == 1 and found.shape == (1, 2, 2)


@pytest.mark.parametrize('padding', [(0, 1, 0, 2), [0, 0, 0, 0]])
def test_padding_at_the_right_and_at_the_bottom(padding):
    found = valid_pixels([sample(2, 2, padding_size=padding)], (4, 3))
    assert found.sum() == 4


@pytest.mark.parametrize('padding', [(1, 0, 0, 0), (0, 0, 1, 0)])
def test_other_padding_is_refused(padding):
    with pytest.raises(ValueError, match='data_preprocessor.size'):
        valid_pixels([sample(2, 2, padding_size=padding)], (3, 3))


def test_ignore_label_is_that_of_mmseg():
    assert IGNORE_LABEL == 255


@pytest.mark.parametrize('flags', [[True, False],
                                   [[True, False, True], [False] * 3]])
def test_matched_is_stacked_and_taken_apart(flags):
    batch = targets()
    assert batch.matched is None
    assert all('matched' not in part for part in batch.unbind())
    flags = torch.tensor(flags)
    parts = batch.replace(matched=flags).unbind()
    assert parts[1].matched.equal(flags[1])
    again = DenseTargets.from_pseudo_labels(parts)
    assert again.matched.equal(flags)
    del parts[0].matched
    assert DenseTargets.from_pseudo_labels(parts).matched is None
