# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import pytest
import torch
from mmengine.registry import init_default_scope

from mmsemi.methods import CAFS
from mmsemi.methods.cafs import ConfidenceHistogram, oversampling_weights
from mmsemi.registry import MODELS


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


def histogram(*counts):
    """Of ten bins; each class as {bin: (wrong, right)}."""
    found = ConfidenceHistogram(len(counts), num_bins=10)
    for c, bins in enumerate(counts):
        for place, pair in bins.items():
            found.counts[c, place] = torch.tensor(pair)
    return found


def thresholds(counts, **kwargs):
    kwargs = dict(
        dict(min_pixels=1, limits=(0., 1.), criterion='cumulative'), **kwargs)
    return histogram(counts).thresholds(**kwargs)[0].item()


# The histogram ------------------------------------------------------------


def test_pixels_are_counted():
    found = ConfidenceHistogram(3, num_bins=4)
    found.update(
        torch.tensor([[0., .25, .24], [.99, 1., .5]]),
        torch.tensor([[0, 0, 1], [2, 2, 1]]),
        torch.tensor([[0, 1, 1], [2, 0, 255]]))
    expected = torch.zeros(3, 4, 2, dtype=torch.long)
    expected[0, 0, 1] = 1  # right with 0
    expected[0, 1, 0] = 1  # wrong with .25, the lower edge of its bin
    expected[1, 0, 1] = 1  # right with .24
    expected[2, 3] = torch.tensor([1, 1])  # .99 right, 1 wrong
    assert torch.equal(found.counts, expected)
    assert found.num_labels.tolist() == [2, 2, 1]
    found.update(
        torch.tensor([.3]), torch.tensor([0]), torch.tensor([1]))
    assert found.counts[0, 1].tolist() == [2, 0]
    found.reduce()
    assert found.counts.sum() == 6


def test_iou_by_hand():
    """2 of 4 predicted right with 3 labels: 2 / 5; never there; perfect."""
    found = histogram({3: (1, 1), 9: (1, 1)}, {}, {5: (0, 4)})
    found.num_labels[:] = torch.tensor([3, 0, 4])
    iou = found.iou().tolist()
    assert iou[0] == pytest.approx(.4) and iou[2] == 1.
    assert math.isnan(iou[1])


def test_iou_of_a_class_that_is_never_predicted():
    found = histogram({}, {5: (4, 0)})
    found.num_labels[:] = torch.tensor([4, 0])
    assert found.iou().tolist() == [0., 0.]


# Thresholds ---------------------------------------------------------------


@pytest.mark.parametrize('precision, expected', [
    (.5, .1),  # 15 of 30
    (.6, .3),  # 14 of 20
    (.7, .3),
    (.71, .6),
    (1., .6),  # 8 of 8
])
def test_smallest_confidence_that_is_precise(precision, expected):
    counts = {0: (9, 0), 2: (9, 1), 5: (6, 6), 8: (0, 5), 9: (0, 3)}
    assert thresholds(
        counts, precision=precision) == pytest.approx(expected)


def test_precision_need_not_grow_with_confidence():
    """From .3 on 90 of 100 are right, from .9 on only half."""
    counts = {2: (50, 0), 3: (9, 89), 9: (1, 1)}
    assert thresholds(counts, precision=.9) == pytest.approx(.3)


def test_empty_bins_below_lower_it():
    """As nothing lies between .4 and .7, both keep the same pixels."""
    counts = {3: (10, 0), 7: (0, 10)}
    found = thresholds(counts, precision=.9)
    assert found == pytest.approx(.4)


def test_too_few_pixels():
    counts = {5: (0, 5), 9: (0, 5)}
    assert thresholds(counts, min_pixels=10) == pytest.approx(0.)
    assert thresholds(counts, min_pixels=11, default=.7) == pytest.approx(.7)
    assert thresholds({}, min_pixels=0, default=.7) == pytest.approx(.7)


def test_class_that_is_never_precise():
    assert thresholds({9: (5, 5)}, default=.85) == pytest.approx(.85)


def test_limits():
    low, high = {9: (0, 500)}, {2: (500, 0), 9: (0, 500)}
    found = histogram(low, high, {}).thresholds(
        precision=.9, default=.95, limits=(.5, .6), criterion='cumulative')
    assert found.tolist() == pytest.approx([.5, .5, .6])


@pytest.mark.parametrize('precision, expected', [
    (.2, .1),  # 2 of 10
    (.3, .3),  # 4 of 10 and 6 of 20 in one: the second is less right
    (1 / 3, .3),
    (.34, .8),
    (.9, .8),
    (.91, .7),
])
def test_calibrated_share_rises(precision, expected):
    """The bins at .3 and .5 break the order and count as one, 10 of 30."""
    counts = {1: (8, 2), 3: (6, 4), 5: (14, 6), 8: (1, 9)}
    found = thresholds(
        counts, precision=precision, default=.7, criterion='calibrated')
    assert found == pytest.approx(expected)


def test_certain_pixels_do_not_excuse_uncertain_ones():
    counts = {5: (60, 40), 7: (10, 90), 9: (0, 9900)}
    assert thresholds(counts, precision=.9) == pytest.approx(0.)
    found = thresholds(counts, precision=.9, criterion='calibrated')
    assert found == pytest.approx(.7)


def test_calibration_of_few_or_no_pixels():
    calibrated = dict(criterion='calibrated', default=.6)
    assert thresholds({}, **calibrated) == pytest.approx(.6)
    counts = {5: (0, 5), 9: (0, 5)}
    found = thresholds(counts, min_pixels=6, **calibrated)
    assert found == pytest.approx(.5)
    found = thresholds(counts, min_pixels=11, **calibrated)
    assert found == pytest.approx(.6)


# Oversampling -------------------------------------------------------------


def test_weights_by_hand():
    present = torch.tensor([[True, False, True], [False, True, False],
                            [True, True, True]])
    found = oversampling_weights(present, torch.tensor([.5, 1., .75]))
    assert found.tolist() == pytest.approx([.5, 0., .5])
    assert found.dtype == torch.float64


def test_class_without_iou_counts_as_zero():
    present = torch.tensor([[True, False], [False, True]])
    found = oversampling_weights(present, torch.tensor([float('nan'), .5]))
    assert found.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_perfect_classes_weight_all_alike():
    present = torch.tensor([[True], [True], [False]])
    found = oversampling_weights(present, torch.ones(1))
    assert found.tolist() == pytest.approx([1 / 3] * 3)


# The model ----------------------------------------------------------------


@pytest.fixture
def make(dense_segmentor_config):

    def build(**kwargs):
        return MODELS.build(
            dict(
                type='mmsemi.CAFS',
                segmentor=dense_segmentor_config(),
                **kwargs))

    return build


def test_thresholds_decide(make, dense_batch_factory):
    model = make(mix=None)
    assert type(model) is CAFS and len(model.threshold_stages) == 1
    shares = []
    for threshold in (0., 1.):
        model.threshold_stages[0].move_thresholds(torch.full((4, ), threshold))
        losses = model(*dense_batch_factory(), mode='loss')
        shares.append(losses['pseudo/kept_share'].item())
    assert shares == [1., 0.]


def test_thresholds_are_in_the_checkpoint(make):
    model, other = make(), make()
    model.threshold_stages[0].move_thresholds(torch.rand(4))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.threshold_stages[0].thresholds,
                       model.threshold_stages[0].thresholds)


def test_thresholds_must_be_movable(make):
    with pytest.raises(ValueError, match='needs mmsemi.KeepAboveClassThres'):
        make(pseudo_label_pipeline=[dict(type='mmsemi.KeepConfidentPixels')])
