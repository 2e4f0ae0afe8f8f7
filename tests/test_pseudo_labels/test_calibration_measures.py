# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import numpy as np
import pytest
import torch

from mmsemi.pseudo_labels import (bin_gaps, calibration_error,
                                  collect_statistics, debiased_squared_error,
                                  excess_calibration_error, group_means,
                                  marginal_statistics, null_calibration_error,
                                  pixel_weights)
from mmsemi.pseudo_labels.calibration_measures import (bin_index,
                                                       mean_absolute_deviation)
from mmsemi.pseudo_labels.class_hierarchy import shrink_gaps

# Over-confident predictions of class 0, under-confident ones of class 1.
SCORES = torch.tensor([.95, .90, .85, .75, .65, .35, .45, .55, .30])
OUTCOMES = torch.tensor([1, 0, 1, 0, 0, 1, 1, 1, 0])
LABELS = torch.tensor([0] * 5 + [1] * 4)


def collect(num_bins=5, **changes):
    given = dict(scores=SCORES, labels=LABELS, outcomes=OUTCOMES)
    return collect_statistics(
        **{**given, **changes}, num_classes=2, num_bins=num_bins)


def close(tensor, values, tolerance=1e-6):
    return tensor.tolist() == pytest.approx(
        values, abs=tolerance, nan_ok=True)


def test_reference_values():
    statistics = collect()
    assert statistics.dtype == torch.float64
    assert statistics[..., 0].tolist() == [[0, 0, 0, 2, 3], [0, 2, 2, 0, 0]]
    gaps = bin_gaps(statistics)
    assert close(gaps[0], [0, 0, 0, -.7, -.233333])
    assert close(gaps[1], [0, .175, .5, 0, 0])
    assert close(calibration_error(statistics), [.42, .3375])
    assert close(calibration_error(statistics, signed=True), [-.42, .3375])
    pooled = statistics.sum(0, keepdim=True)
    assert close(calibration_error(pooled), [.383333])
    assert close(calibration_error(pooled, signed=True), [-.083333])


@pytest.mark.parametrize('num_bins', [1, 5, 15])
def test_signed_error_does_not_depend_on_the_bins(num_bins):
    error = calibration_error(collect(num_bins), signed=True)
    assert close(error, [-.42, .3375])


def test_gaps_of_both_signs_cancel_with_sign_only():
    statistics = collect_statistics(
        torch.tensor([.95] * 4 + [.55] * 4),
        torch.zeros(8).long(), torch.tensor([1, 1, 0, 0, 1, 1, 1, 1]), 1, 10)
    gaps = bin_gaps(statistics)[0]
    assert close(gaps[[9, 5]], [-.45, .45])
    assert close(calibration_error(statistics), [.45])
    assert close(calibration_error(statistics, signed=True), [0.])


def test_marginal_error_uses_all_probabilities():
    probs = torch.tensor([[.7, .2, .1], [.6, .3, .1], [.1, .8, .1],
                          [.2, .5, .3], [.3, .3, .4]])
    statistics = marginal_statistics(
        probs, torch.tensor([0, 1, 1, 1, 2]), num_bins=5)
    assert statistics[..., 0].sum(1).tolist() == [5, 5, 5]
    assert close(calibration_error(statistics), [.30, .26, .12])
    assert close(calibration_error(statistics, signed=True), [-.18, .18, 0.])


def test_background_is_none_of_the_marginal_classes():
    statistics = marginal_statistics(
        torch.tensor([[.7, .2]]), torch.tensor([2]), num_bins=1)
    assert close(statistics.flatten(), [1, .7, 0, 1, .2, 0])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_bins_are_closed_on_the_right(dtype):
    scores = torch.tensor([0, .2, .2 + 1e-6, .4, .6, .8, 1], dtype=dtype)
    assert bin_index(scores, 5).tolist() == [0, 0, 1, 1, 2, 3, 4]
    edges = torch.tensor([(b + 1) / 15 for b in range(15)], dtype=dtype)
    assert bin_index(edges, 15).tolist() == list(range(15))
    assert bin_index(scores, 1).tolist() == [0] * 7
    assert bin_index(scores.view(7, 1), 5).shape == (7, 1)


def test_half_precision_scores():
    assert bin_index(torch.tensor([.1, .5, 1.]).half(), 2).tolist() == [
        0, 0, 1
    ]


def test_sums_of_parts_are_the_sum_of_all():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(999, generator=generator)**4
    labels = torch.randint(0, 7, (999, ), generator=generator)
    outcomes = torch.rand(999, generator=generator)
    weights = torch.rand(999, generator=generator)

    def part(index):
        return collect_statistics(scores[index], labels[index],
                                  outcomes[index], 7, 15, weights[index])

    every = torch.arange(999)
    total = part(every)
    assert total.equal(part(every[:400]) + part(every[400:]))
    assert total.equal(part(every[1::3]) + part(every[::3]) +
                       part(every[2::3]))
    assert total.equal(part(torch.randperm(999, generator=generator)))
    assert total.sum((0, 1)).tolist() == pytest.approx([
        float(weights.sum()),
        float((weights * scores).sum()),
        float((weights * outcomes).sum())
    ], rel=1e-5)


def test_weights_count_as_so_many():
    double = collect(weights=torch.full((9, ), 2.))
    assert double.equal(2 * collect())
    assert collect(weights=torch.zeros(9)).count_nonzero() == 0


def test_unmeasured_classes_are_nan():
    statistics = collect_statistics(SCORES, LABELS, OUTCOMES, 4, 5)
    for measure in (calibration_error, null_calibration_error,
                    excess_calibration_error, debiased_squared_error):
        assert measure(statistics).isnan().tolist() == [
            False, False, True, True
        ]
    assert calibration_error(
        statistics, min_count=5).isnan().tolist() == [False, True, True, True]
    assert bin_gaps(statistics)[2:].count_nonzero() == 0


@pytest.mark.parametrize('count, expected', [(5, .1729), (10, .1121),
                                             (50, .0514), (500, .0164)])
def test_luck_of_a_calibrated_class(count, expected):
    statistics = torch.tensor([[[count, .7 * count, 0.]]]).double()
    assert close(null_calibration_error(statistics), [expected], 1e-4)


@pytest.mark.parametrize('count', [1, 2, 3, 7, 10])
@pytest.mark.parametrize('rate', [0., .1, .3, .5, .7, .95, 1.])
def test_mean_absolute_deviation_equals_the_sum(count, rate):
    expected = sum(
        math.comb(count, k) * rate**k * (1 - rate)**(count - k) *
        abs(k / count - rate) for k in range(count + 1))
    found = mean_absolute_deviation(
        torch.tensor([count], dtype=torch.float64),
        torch.tensor([rate], dtype=torch.float64))
    assert close(found, [expected], 1e-12)


def test_excess_is_what_luck_does_not_explain():
    # Two predictions of .5, one right: nothing to see, as often as not.
    statistics = torch.tensor([[[2., 1., 1.]]]).double()
    assert close(null_calibration_error(statistics), [.25])
    assert close(excess_calibration_error(statistics), [-.25])


def test_debiased_squared_error():
    statistics = torch.tensor([[[10., 7., 5.]]]).double()
    assert close(debiased_squared_error(statistics), [.012222])
    # A bin of one prediction says nothing; alone, nothing is known.
    more = torch.tensor([[[10., 7., 5.], [1., .9, 0.]]]).double()
    assert close(debiased_squared_error(more), [.012222])
    assert debiased_squared_error(more[:, 1:]).isnan().all()


def test_few_predictions_look_wrong_by_luck():
    """1,000 calibrated classes with five predictions of .7 each."""
    generator = np.random.default_rng(0)
    right = torch.tensor(generator.binomial(5, .7, 1000)).double()
    statistics = torch.stack(
        [torch.full_like(right, 5), torch.full_like(right, 3.5), right],
        -1)[:, None]
    error = calibration_error(statistics)
    assert float(error.mean()) == pytest.approx(.17, abs=.01)
    assert float(
        excess_calibration_error(statistics).mean()) == pytest.approx(
            0, abs=.01)
    assert float(debiased_squared_error(statistics).mean()) == pytest.approx(
        0, abs=.01)
    # A prior of 20 predictions leaves a fifth of it.
    gaps = shrink_gaps(right - 3.5, torch.full_like(right, 5),
                       torch.zeros_like(right), 20.)
    assert float(gaps.abs().mean()) == pytest.approx(float(error.mean()) / 5)


def test_group_means_leave_out_the_unmeasured():
    values = torch.tensor([.1, .3, math.nan, .5, math.nan])
    groups = torch.tensor([0, 0, 0, 2, 1])
    assert close(group_means(values, groups), [.2, math.nan, .5])
    assert close(group_means(values, groups, 4),
                 [.2, math.nan, .5, math.nan])


def test_pixels_of_one_image_count_little():
    labels = torch.tensor([[0] * 40 + [1] * 10, [0] * 40 + [3] * 10])
    weights = pixel_weights(labels)
    assert weights.shape == labels.shape
    assert weights[labels == 0].unique().tolist() == [.25]
    assert weights[labels != 0].unique().tolist() == [1.]
    assert float(pixel_weights(labels, 4.).sum()) == pytest.approx(12.)
    assert pixel_weights(labels[:0]).shape == (0, 50)
    with pytest.raises(ValueError, match='per_class=0'):
        pixel_weights(labels, 0)
