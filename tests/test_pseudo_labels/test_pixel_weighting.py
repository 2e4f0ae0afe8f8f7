# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch

from mmsemi.pseudo_labels import (PixelWeighting, PseudoLabelPipeline,
                                  pixel_weight)
from mmsemi.structures.dense_pseudo_label import DensePseudoLabel


@pytest.mark.parametrize('prob, weight', [
    (0., .938555),
    (.1, .733142),
    (.25, .377019),
    (.4, .099961),
    (.45, .054105),
    (.5, .038434),
])
def test_weights_are_those_of_the_paper(prob, weight):
    found = pixel_weight(torch.tensor([prob, 1 - prob]))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([weight] * 2, abs=1e-6)


def test_weights_are_positive_and_below_one():
    weights = pixel_weight(torch.linspace(0, 1, 100001, dtype=torch.float64))
    assert weights.dtype == torch.float64
    assert weights.min() > 0 and weights.max() < 1
    assert weights.mean().item() == pytest.approx(.4139, abs=1e-4)
    assert pixel_weight(torch.tensor([.198, .802])).tolist() == pytest.approx(
        [.5, .5], abs=5e-3)
    # In half precision the sum would lose three digits.
    half = torch.tensor([.5], dtype=torch.float16)
    assert pixel_weight(half).item() == pytest.approx(.038434, abs=1e-6)


def dense(prob, matched=None, label=None):
    prob = torch.tensor(prob)
    if label is None:
        confidence, label = prob.max(0)
    else:
        label = torch.tensor(label)
        confidence = prob.amax(0)
    fields = dict(
        label=label,
        confidence=confidence,
        weight=torch.full(label.shape, .5),
        valid=torch.ones_like(label, dtype=torch.bool),
        prob=prob)
    if matched is not None:
        fields['matched'] = torch.tensor(matched)
    return DensePseudoLabel(**fields)


TWO = [[[.8, .5, 0.]], [[.2, .5, 1.]]]


def test_matched_images_keep_their_weight():
    stage = PixelWeighting()
    matched, missed = dense(TWO, True), dense(TWO, False)
    found = stage([matched, missed], [None] * 2)
    assert found[0].weight.tolist() == [[.5] * 3]
    expected = .5 * pixel_weight(torch.tensor([.2, .5, 1.]))
    assert found[1].weight[0].equal(expected)
    assert missed.weight.tolist() == [[.5] * 3]


def test_all_are_weighted_on_demand():
    stage = PixelWeighting(only_unmatched=False, gamma=2., mu=0., variance=1.)
    found, = stage([dense(TWO, True)], [None])
    expected = .5 * pixel_weight(torch.tensor([[.2, .5, 1.]]), 2., 0., 1.)
    assert found.weight.equal(expected)
    assert stage([dense(TWO)], [None])[0].weight.equal(expected)


def test_classes_have_flags_of_their_own():
    prob = [[[.5, .1, .3, .3]], [[.3, .8, .4, .4]], [[.2, .1, .3, .3]]]
    label = dense(prob, [False, True, False], [[0, 1, 255, 0]])
    found, = PixelWeighting(source='confidence')([label], [None])
    # A confidence below one half weighs least, as one half does.
    assert found.weight[0].tolist() == pytest.approx(
        [.5 * .038434, .5, .5 * .038434, .5 * .038434], abs=1e-6)
    with pytest.raises(ValueError, match="two classes, but there are 3.*'con"):
        PixelWeighting()([label], [None])


def test_what_it_reads_is_checked_when_built():
    fields = ('label', 'confidence', 'weight', 'valid', 'prob')
    stage = dict(type='mmsemi.PixelWeighting')
    with pytest.raises(ValueError, match=r"needs \['matched'\]"):
        PseudoLabelPipeline([stage], fields)
    PseudoLabelPipeline([dict(stage, only_unmatched=False)], fields)
    pipeline = PseudoLabelPipeline(
        [dict(type='mmsemi.RefineByProposals'), stage], fields)
    assert pipeline.needs('prob')
    pipeline = PseudoLabelPipeline([
        dict(type='mmsemi.RefineByProposals'),
        dict(stage, source='confidence')
    ], fields)
    assert not pipeline.needs('prob')


@pytest.mark.parametrize('arguments, message', [
    (dict(variance=0), 'PixelWeighting.variance=0'),
    (dict(gamma=1.2), 'gamma=1.2 gives negative weights.*from 1.2616'),
    (dict(source='both'), "source='both'"),
])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelWeighting(**arguments)
