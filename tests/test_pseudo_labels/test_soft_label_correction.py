# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import pytest
import torch

from mmsemi.pseudo_labels import correct_marginals, replace_confidence
from mmsemi.pseudo_labels.soft_label_correction import (drop_background,
                                                        rescale_logits)

# Three classes and the background.
ROW = torch.tensor([[.70, .20, .05, .05]])
ZERO = torch.tensor([0])


def close(row, values, tolerance=1e-6):
    return row.squeeze(0).tolist() == pytest.approx(values, abs=tolerance)


def replace(confidence, probs=ROW, labels=ZERO, num_classes=3, **settings):
    confidence = torch.tensor([confidence], dtype=torch.float64)
    return replace_confidence(probs, labels, confidence, num_classes,
                              **settings)


@pytest.mark.parametrize('confidence, expected', [
    (.50, [.5, .333333, .083333, .083333]),
    (.90, [.9, .066667, .016667, .016667]),
    (.9999, [.9999, .000067, .000017, .000017]),
])
def test_reference_values(confidence, expected):
    assert close(replace(confidence), expected)


def test_it_is_a_step_of_one_logit():
    offset = torch.tensor([math.log(.5 / .5) - math.log(.7 / .3), 0, 0, 0])
    assert float(offset[0]) == pytest.approx(-.847298, abs=1e-6)
    moved = rescale_logits(ROW, offset=offset)
    assert moved.allclose(replace(.5), atol=1e-6)


def test_scaling_all_would_miss_the_confidence():
    added = (ROW + torch.tensor([-.2, .1, .05, 0])).clamp(min=0)
    added /= added.sum()
    assert close(added, [.526316, .315789, .105263, .052632])
    assert close(replace(.5)[:, :1], [.5])


@pytest.mark.parametrize('slope, expected', [
    (1 / 2, [.483315, .258343, .129171, .129171]),
    (2, [.915888, .074766, .004673, .004673]),
])
def test_temperature_of_a_whole_row(slope, expected):
    assert close(rescale_logits(ROW, slope), expected)


def test_marginals_of_all_columns():
    outcome = torch.tensor([.5, .6, .5, .5])
    confidence = torch.tensor([.7, .4, .5, .5])
    # Half in another bin: what counts are the means.
    statistics = torch.stack(
        [torch.full((4, ), 10.), 10 * confidence, 10 * outcome], -1)
    statistics = torch.stack([statistics, statistics], 1).double()
    corrected = correct_marginals(ROW, statistics)
    assert close(corrected, [.352941, .529412, .058824, .058824])
    # What each logit moved by, against the last one.
    moved = (corrected / ROW).log()
    assert close(
        moved - moved[:, -1:], [-.847298, .810930, 0, 0], tolerance=1e-5)
    assert int(ROW.argmax()) == 0 and int(corrected.argmax()) == 1
    assert corrected.dtype == torch.float32
    nothing = torch.zeros_like(statistics)
    assert correct_marginals(ROW, nothing).allclose(ROW, atol=1e-6)


def test_rows_sum_to_one_and_ratios_stay():
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn((50, 7), generator=generator).softmax(1)
    labels = torch.randint(0, 6, (50, ), generator=generator)
    confidence = torch.rand(50, generator=generator).double()
    found = replace_confidence(probs, labels, confidence, 6)
    assert found.dtype == torch.float32
    assert found.sum(1).allclose(torch.ones(50), atol=1e-6)
    rows = torch.arange(50)
    assert found[rows, labels].allclose(confidence.float())
    others = torch.ones(50, 7).bool()
    others[rows, labels] = False
    factors = (found / probs)[others].view(50, 6)
    assert factors.allclose(factors[:, :1].expand(-1, 6), rtol=1e-5)


def test_unchanged_confidence_is_bit_identical():
    probs = torch.tensor([[.7, .2, .05, .05], [.1, .3, .5, .1000001]])
    labels = torch.tensor([0, 2])
    confidence = probs[[0, 1], labels].double()
    assert replace_confidence(probs, labels, confidence, 3).equal(probs)
    confidence[1] = .4
    found = replace_confidence(probs, labels, confidence, 3)
    assert found[0].equal(probs[0]) and not found[1].equal(probs[1])


def test_the_input_stays_as_it_is():
    before = ROW.clone()
    replace(.3)
    drop_background(ROW)
    assert ROW.equal(before)


SIMILARITY = torch.tensor([[0., .75, .25], [.5, 0., .5], [1., 0., 0.]])


@pytest.mark.parametrize('similarity, expected', [
    (None, [.8, .1, .1, 0]),
    (SIMILARITY, [.8, .15, .05, 0]),
])
def test_rows_without_a_rest_are_spread(similarity, expected):
    sure = torch.tensor([[1., 0, 0, 0]])
    assert close(replace(.8, sure, similarity=similarity), expected)
    almost = torch.tensor([[1 - 4e-7, 0, 0, 4e-7]])
    assert close(replace(.8, almost, similarity=similarity), expected)
    # A rest above 1e-6 speaks.
    less = torch.tensor([[1 - 4e-6, 0, 0, 4e-6]])
    assert close(replace(.8, less, similarity=similarity), [.8, 0, 0, .2])


def test_all_rows_can_be_spread_by_similarity():
    found = replace(.6, similarity=SIMILARITY, rest='similarity')
    assert close(found, [.6, .3, .1, 0])
    found = replace(
        .6, labels=torch.tensor([2]), similarity=SIMILARITY,
        rest='similarity')
    assert close(found, [.4, 0, .6, 0])


def test_without_a_background_column():
    probs = torch.tensor([[.5, .3, .2]])
    assert close(replace(.8, probs), [.8, .12, .08])
    sure = torch.tensor([[1., 0, 0]])
    assert close(replace(.8, sure), [.8, .1, .1])
    assert close(replace(.8, sure, similarity=SIMILARITY), [.8, .15, .05])


def test_a_single_class():
    assert close(replace(.8, torch.tensor([[.6, .4]]), num_classes=1),
                 [.8, .2])
    # There is nothing but the background to take the rest.
    assert close(replace(.8, torch.tensor([[1., 0.]]), num_classes=1),
                 [.8, .2])
    alone = torch.tensor([[1.]])
    assert replace(.8, alone, num_classes=1).equal(alone)


def test_no_rows():
    found = replace_confidence(
        torch.zeros(0, 4),
        torch.zeros(0).long(),
        torch.zeros(0).double(),
        3,
        similarity=SIMILARITY)
    assert found.shape == (0, 4)
    assert drop_background(found).shape == (0, 4)


def test_any_leading_shape():
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn((2, 5, 6, 4), generator=generator).softmax(-1)
    labels = probs[..., :3].argmax(-1)
    confidence = torch.rand((2, 5, 6), generator=generator).double()
    for rest in ('keep', 'similarity'):
        found = replace_confidence(probs, labels, confidence, 3, SIMILARITY,
                                   rest)
        flat = replace_confidence(
            probs.flatten(0, 2), labels.flatten(), confidence.flatten(), 3,
            SIMILARITY, rest)
        assert found.equal(flat.view_as(found))


def test_half_precision_rows():
    found = replace(.5, ROW.half())
    assert found.dtype == torch.float16
    assert close(found, [.5, .333333, .083333, .083333], 1e-3)


def test_the_background_is_dropped():
    assert close(drop_background(ROW), [.736842, .210526, .052632, 0])
    nothing = torch.tensor([[0., 0., 0., 1.]])
    assert drop_background(nothing).tolist() == [[0., 0., 0., 0.]]
