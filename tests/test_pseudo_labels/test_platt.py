# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mmsemi.pseudo_labels import platt
from mmsemi.pseudo_labels.platt import apply_platt, fit_platt, logit

IDENTITY = torch.tensor([[1., 0.]]).double()
# Two bins, at .9 and .6, of which half is right.
TWO_BINS = torch.tensor([[[4, 3.6, 2], [2, 1.2, 1]]]).double()


def random_statistics(num_classes=20, num_bins=10):
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(0, 30, (num_classes, num_bins), generator=generator)
    middle = (torch.arange(num_bins) + .5) / num_bins
    share = torch.rand((num_classes, num_bins), generator=generator)
    return torch.stack([count, count * middle, (count * share).round()],
                       -1).double()


def test_reference_values():
    found = fit_platt(TWO_BINS, IDENTITY, (.5, .5))
    assert found[0].tolist() == pytest.approx([.522609, -.216773], abs=1e-6)
    mapped = apply_platt(torch.tensor([.9, .6]).double(), *found[0])
    assert mapped.tolist() == pytest.approx([.717383, .498782], abs=1e-6)


def test_six_steps_are_enough(monkeypatch):
    expected = fit_platt(TWO_BINS, IDENTITY, (.5, .5))
    monkeypatch.setattr(platt, 'MOST_STEPS', 6)
    assert fit_platt(TWO_BINS, IDENTITY, (.5, .5)).allclose(
        expected, rtol=0, atol=1e-9)


def test_without_a_prior_half_right_is_half():
    found = fit_platt(
        TWO_BINS, IDENTITY, (math.inf, math.inf), min_slope=-math.inf)
    assert found[0].tolist() == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize('centre', [(1., 0.), (.7, -.3)])
def test_without_data_the_centre_stays_exactly(centre):
    centre = torch.tensor([centre]).double()
    found = fit_platt(torch.zeros(1, 3, 3).double(), centre, (.2, .4))
    assert found.equal(centre)


def test_identity_is_bit_identical():
    values = torch.tensor([0., 1e-9, .3, .7, 1.]).double()
    assert apply_platt(values, *IDENTITY[0]).equal(values)


def test_equals_scikit_learn():
    """A flat prior on the offset and a ridge around slope 0."""
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([.1, .4, .7, .95]).double()
    count = torch.tensor([20, 30, 40, 50])
    right = torch.tensor([6, 10, 22, 41])
    statistics = torch.stack([count, count * places, right], -1)[None]
    x = logit(places).repeat_interleave(count)
    y = torch.cat([
        torch.tensor([1] * r + [0] * (n - r)) for n, r in zip(count, right)
    ])
    order = torch.randperm(len(x), generator=generator)
    # Its penalty is C^-1 / 2 a^2, ours a^2 / (2 width^2).
    model = LogisticRegression(C=.25, tol=1e-10, max_iter=1000)
    model.fit(x[order, None].numpy(), y[order].numpy())
    found = fit_platt(
        statistics.double(),
        torch.zeros(1, 2).double(), (.5, math.inf),
        min_slope=-math.inf)
    assert found[0].tolist() == pytest.approx(
        [float(model.coef_[0, 0]), float(model.intercept_[0])], abs=1e-6)


def test_rows_do_not_disturb_each_other():
    statistics = random_statistics()
    centre = IDENTITY.expand(20, -1)
    together = fit_platt(statistics, centre, (.2, .4))
    alone = torch.cat(
        [fit_platt(row[None], IDENTITY, (.2, .4)) for row in statistics])
    assert together.allclose(alone, rtol=0, atol=1e-9)
    assert fit_platt(statistics, centre, (.2, .4)).equal(together)


@pytest.mark.parametrize('width', [(.2, .4), (5., 5.), (1e3, 1e3)])
def test_the_gradient_vanishes(width):
    statistics = random_statistics()
    found = fit_platt(
        statistics, IDENTITY.expand(20, -1), width, min_slope=-math.inf)
    found.requires_grad_()
    count, confidence, outcome = statistics.unbind(-1)
    x = logit((confidence / count).nan_to_num(.5))
    z = found[:, :1] * x + found[:, 1:]
    loss = (count * torch.nn.functional.softplus(z) - outcome * z).sum()
    loss = loss + (((found - IDENTITY) / torch.tensor(width))**2).sum() / 2
    loss.backward()
    assert found.grad.abs().max() < 1e-6


def test_a_falling_class_gets_the_smallest_slope_and_the_best_offset():
    # Nine of ten are right at .2, one of ten at .8.
    statistics = torch.tensor([[[10, 2., 9], [10, 8., 1]]]).double()
    found = fit_platt(statistics, IDENTITY, (5., 5.))
    assert float(found[0, 0]) == .05
    # By symmetry half is right on average.
    assert float(found[0, 1]) == pytest.approx(0, abs=1e-9)
    skewed = torch.tensor([[[10, 2., 9], [10, 8., 3]]]).double()
    slope, offset = fit_platt(skewed, IDENTITY, (5., math.inf))[0]
    rates = apply_platt(torch.tensor([.2, .8]).double(), slope, offset)
    assert float(slope) == .05
    assert float(rates.sum()) * 10 == pytest.approx(12)


def test_slope_only_keeps_the_offset():
    found = fit_platt(TWO_BINS, IDENTITY, (.5, .5), slope_only=True)
    assert float(found[0, 1]) == 0 and .05 < float(found[0, 0]) < 1


def test_all_right_or_all_wrong_at_the_edges_stays_finite():
    statistics = torch.tensor([[[50, 50., 50]], [[50, 0., 0]],
                               [[50, 50., 0]], [[50, 0., 50]]]).double()
    for width in ((1., 1.), (1e6, 1e6), (math.inf, math.inf)):
        found = fit_platt(statistics, IDENTITY.expand(4, -1), width)
        assert found.isfinite().all()
        assert (found[:, 0] >= .05).all()


def test_fractions_may_be_outcomes():
    statistics = torch.tensor([[[100, 80., 62.5]]]).double()
    found = fit_platt(
        statistics, IDENTITY, (1e-3, math.inf))[0]
    mapped = apply_platt(torch.tensor(.8).double(), *found)
    assert float(mapped) == pytest.approx(.625)
