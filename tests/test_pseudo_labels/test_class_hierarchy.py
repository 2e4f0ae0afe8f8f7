# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
import math

import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from mmsemi.pseudo_labels import (collect_statistics, frequency_groups,
                                  quantile_groups, read_class_groups)
from mmsemi.pseudo_labels.class_hierarchy import (check_groups,
                                                  empirical_bayes,
                                                  hierarchical_gaps,
                                                  hierarchical_platt, rising,
                                                  shrink_gaps, sum_groups)

SCORES = torch.tensor([.95, .90, .85, .75, .65, .35, .45, .55, .30])
OUTCOMES = torch.tensor([1, 0, 1, 0, 0, 1, 1, 1, 0])
LABELS = torch.tensor([0] * 5 + [1] * 4)
DATA = collect_statistics(SCORES, LABELS, OUTCOMES, 2, 5)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(tensor, values, tolerance=1e-6):
    return tensor.tolist() == pytest.approx(
        values, abs=tolerance, nan_ok=True)


def test_shrunk_scalars():
    zero = double(0.)
    every = shrink_gaps(double(-40.), double(400.), zero, 20.)
    group = shrink_gaps(double(2.), double(40.), every, 20.)
    few = shrink_gaps(double(2.), double(5.), group, 20.)
    none = shrink_gaps(zero, zero, group, 20.)
    assert close(torch.cat([every, group, few, none]),
                 [-.095238, .001587, .081270, .001587])


def test_raw_gaps_inherit_nothing():
    gaps = shrink_gaps(double(2., 0.), double(5., 0.), double(.3, .3), 0.)
    assert gaps.tolist() == [.4, 0.]


def test_an_infinite_prior_leaves_the_parent():
    gaps = shrink_gaps(
        double(2., 0.), double(5., 0.), double(.3, .1), math.inf)
    assert gaps.tolist() == [.3, .1]


def test_gaps_of_bins_with_a_group_for_each_class():
    gaps = hierarchical_gaps(DATA, torch.tensor([0, 1]))
    assert close(gaps[0], [0, .015909, .045455, -.174080, -.079913])
    assert close(gaps[1], [0, .043520, .124343, -.063636, -.030435])
    every = hierarchical_gaps(
        DATA.sum(0, keepdim=True), torch.tensor([0]), 20.)
    # One class is shrunk to itself once more.
    pooled = DATA.sum(0)
    first = (pooled[:, 2] - pooled[:, 1]) / (pooled[:, 0] + 20)
    assert close(first, [0, .015909, .045455, -.063636, -.030435])
    second = (pooled[:, 2] - pooled[:, 1] + 20 * first) / (pooled[:, 0] + 20)
    assert close(every[0], second.tolist())


def test_one_group_is_no_level():
    one = hierarchical_gaps(DATA, torch.tensor([0, 0]))
    pooled = DATA.sum(0)
    first = (pooled[:, 2] - pooled[:, 1]) / (pooled[:, 0] + 20)
    expected = (DATA[..., 2] - DATA[..., 1] + 20 * first) / (
        DATA[..., 0] + 20)
    assert close(one.flatten(), expected.flatten().tolist(), 1e-12)


def test_groups_are_summed():
    statistics = torch.arange(24).double().view(4, 2, 3)
    found = sum_groups(statistics, torch.tensor([0, 2, 0, 2]), 3)
    assert found[0].equal(statistics[0] + statistics[2])
    assert found[1].count_nonzero() == 0
    assert found[2].equal(statistics[1] + statistics[3])


def test_empirical_bayes():
    mean, spread, posterior = empirical_bayes(
        double(.3, -.1, .05, -.25), double(10, 40, 20, 80),
        double(.6, .5, .55, .4))
    assert close(mean, -.134446) and close(spread, .043594)
    assert close(posterior, [.145745, -.104319, .009218, -.242560])
    # How much of its own gap each class keeps, and its variance.
    gaps = double(.3, -.1, .05, -.25)
    weight = (posterior - mean) / (gaps - mean)
    assert close(weight, [.644938, .874608, .778894, .935614])
    assert close(spread * (1 / weight - 1), [.024, .00625, .012375, .003])


def test_auto_kappa_follows_how_much_classes_differ():
    """With alike classes each leans on the group, with others on itself."""
    count, confidence = torch.full((40, ), 50.), torch.full((40, ), 35.)

    def gaps_of(rates):
        statistics = torch.stack([count, confidence, count * rates], -1)
        return hierarchical_gaps(
            statistics[:, None].double(), torch.zeros(40).long(),
            'auto')[:, 0]

    alike = gaps_of(torch.full((40, ), .5))
    assert alike.max() - alike.min() < 1e-12
    rates = torch.linspace(.1, .9, 40)
    different = gaps_of(rates)
    # Luck's variance .25 / 50 against .0560 - .005 between classes.
    kappa = .25 / (float(rates.var()) - .005)
    group = float((rates - .7).sum() * 50 / (2000 + 20))
    expected = ((rates - .7) * 50 + kappa * group) / (50 + kappa)
    assert close(different, expected.tolist(), 1e-6)


def test_auto_kappa_of_a_lonely_class_is_the_default():
    groups = torch.tensor([0, 1])
    scalars = DATA.sum(1, keepdim=True)
    assert hierarchical_gaps(scalars, groups, 'auto').equal(
        hierarchical_gaps(scalars, groups, 20.))
    nothing = torch.zeros_like(DATA)
    assert hierarchical_gaps(nothing, groups, 'auto').count_nonzero() == 0


def test_platt_leans_on_the_level_above():
    """Of three groups one has no data, and one class of each has none."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.tensor([0, 0, 1, 1, 2])
    scores = torch.rand(400, generator=generator)
    labels = torch.tensor([0, 2])[torch.arange(400) % 2]
    # Group 0 is under-confident, group 1 over-confident.
    rate = torch.where(labels == 0, scores**.5, scores**3)
    right = torch.rand(400, generator=generator) < rate
    maps = hierarchical_platt(
        collect_statistics(scores, labels, right, 5, 15), groups)
    pooled = hierarchical_platt(
        collect_statistics(scores, torch.zeros_like(labels), right, 1, 15),
        torch.tensor([0]), ((1., 1.), (1., 1.), (1e-6, 1e-6)))
    assert maps[0, 1] > maps[1, 1] > .3
    assert maps[2, 1] < maps[3, 1] < -.3
    # Without a prediction in its group, a class has the map of all.
    assert maps[4].allclose(pooled[0], rtol=0, atol=1e-6)


def test_platt_of_nothing_is_the_identity():
    maps = hierarchical_platt(
        torch.zeros(3, 5, 3).double(), torch.tensor([0, 1, 2]))
    assert maps.tolist() == [[1., 0.]] * 3


def test_rising_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand((30, 15), generator=generator).double()
    weights = torch.rand((30, 15), generator=generator).double() + .1
    found = rising(values, weights)
    for row, weight, result in zip(values, weights, found):
        model = IsotonicRegression().fit(
            range(15), row.numpy(), sample_weight=weight.numpy())
        expected = model.predict(range(15))
        assert close(result, expected.tolist(), 1e-12)


def test_rising_rows_are_bit_identical():
    rows = double(0, .1, .1, .3)[None], double(.2, .1, .4, .5)[None]
    values = torch.cat(rows)
    found = rising(values, torch.ones_like(values))
    assert found[0].equal(values[0])
    assert close(found[1], [.15, .15, .4, .5])


def test_bins_that_weigh_nothing_are_pooled_too():
    values = double(.05, 1., .65, .75, .5)[None]
    found = rising(values, double(1e-9, 4, 1e-9, 1e-9, 4)[None])
    assert close(found[0], [.05, .75, .75, .75, .75])


# Groups ---------------------------------------------------------------------


def test_frequency_groups_are_those_of_lvis():
    found = frequency_groups([1, 10, 11, 100, 101, 5000, 0])
    assert found.tolist() == [0, 0, 1, 1, 2, 2, 0]
    assert found.dtype == torch.long


@pytest.mark.parametrize('counts, expected', [
    ([9, 1, 5, 3, 7, 2], [2, 0, 1, 1, 2, 0]),
    ([4, 4, 4], [0, 0, 0]),
    ([1, 1, 1, 8], [0, 0, 0, 2]),
    ([5], [0]),
    (list(range(10)), [0] * 4 + [1] * 3 + [2] * 3),
])
def test_quantile_groups(counts, expected):
    assert quantile_groups(counts).tolist() == expected


def test_one_quantile_is_one_group():
    assert quantile_groups([3, 1, 2], 1).tolist() == [0, 0, 0]


@pytest.mark.parametrize('counts, number', [([], 3), ([1], 0)])
def test_no_groups_of_nothing(counts, number):
    with pytest.raises(ValueError, match='both start at 1'):
        quantile_groups(counts, number)


@pytest.fixture
def ann_file(tmp_path):

    def write(categories, annotations=()):
        path = tmp_path / 'annotations.json'
        path.write_text(
            json.dumps(
                dict(categories=categories, annotations=list(annotations))))
        return str(path)

    return write


def test_groups_from_an_lvis_file(ann_file):
    path = ann_file([
        dict(id=i, name=name, frequency=f)
        for i, name, f in ((1, 'cat', 'f'), (2, 'dog', 'r'), (5, 'cow', 'c'))
    ])
    assert read_class_groups(path).tolist() == [2, 0, 1]
    # Labels are counted in the order of the file, not of the names.
    assert read_class_groups(path, ('cow', 'cat')).tolist() == [2, 1]


def test_groups_from_instances(ann_file):
    numbers = {1: 5, 2: 1, 5: 3, 7: 50}
    annotations = [
        dict(category_id=c) for c, number in numbers.items()
        for _ in range(number)
    ]
    crowd = [dict(category_id=2, iscrowd=1)] * 30
    path = ann_file([
        dict(id=i, name=name)
        for i, name in ((1, 'cat'), (2, 'dog'), (5, 'cow'), (7, 'elk'))
    ], annotations + crowd)
    assert read_class_groups(
        path, ('cat', 'dog', 'cow')).tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="'gnu'"):
        read_class_groups(path, ('cat', 'gnu'))


@pytest.mark.parametrize('groups', [[0, 1], [0, 1, -1], [0., 1., 2.],
                                    [True, False, True], [[0, 1, 2]]])
def test_groups_that_are_none(groups):
    with pytest.raises(ValueError, match='a.field must name the group'):
        check_groups(groups, 3, 'a.field')
