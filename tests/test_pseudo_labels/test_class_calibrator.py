# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmsemi.pseudo_labels import ClassCalibrator, marginal_statistics
from mmsemi.pseudo_labels.class_calibrator import MODES
from mmsemi.pseudo_labels.class_hierarchy import hierarchical_gaps
from mmsemi.registry import MODELS

SCORES = torch.tensor([.95, .90, .85, .75, .65, .35, .45, .55, .30])
OUTCOMES = torch.tensor([1, 0, 1, 0, 0, 1, 1, 1, 0])
LABELS = torch.tensor([0] * 5 + [1] * 4)
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def fitted(num_classes=2, **settings):
    calibrator = ClassCalibrator(num_classes, **settings)
    calibrator.update(SCORES, LABELS, OUTCOMES)
    calibrator.fit()
    return calibrator


def random_predictions(num_classes=6, number=2000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(number, generator=generator)
    labels = torch.randint(0, num_classes, (number, ), generator=generator)
    right = torch.rand(number, generator=generator) < scores**(
        .3 + .4 * labels)
    return scores, labels, right


def rows(number=40, columns=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn((number, columns),
                            generator=generator)).softmax(1)


def map_of(calibrator, *values, label=0):
    scores = torch.tensor(values, dtype=torch.float64)
    return calibrator.transform(scores, torch.full(scores.shape,
                                                   label)).tolist()


# Measuring ------------------------------------------------------------------


def test_measures():
    calibrator = ClassCalibrator(3, num_bins=5, groups=[0, 1, 1])
    assert calibrator.calibration_error().isnan().all()
    calibrator.update(SCORES, LABELS, OUTCOMES)
    error = calibrator.calibration_error()
    assert error.tolist() == pytest.approx([.42, .3375, math.nan],
                                           nan_ok=True)
    signed = calibrator.calibration_error(signed=True)
    assert signed.tolist() == pytest.approx([-.42, .3375, math.nan],
                                            nan_ok=True)
    assert float(signed.nanmean()) == pytest.approx(-.04125)
    assert float(error.nanmean()) == pytest.approx(.37875)
    assert calibrator.group_means(error).tolist() == pytest.approx(
        [.42, .3375])
    assert calibrator.bin_gaps()[0].tolist() == pytest.approx(
        [0, 0, 0, -.7, -.233333], abs=1e-6)
    excess = (error - calibrator.null_calibration_error()).tolist()
    assert calibrator.excess_calibration_error().tolist() == pytest.approx(
        excess, nan_ok=True)
    assert calibrator.debiased_squared_error().isnan().tolist() == [
        False, False, True
    ]


def test_every_mode_is_built_from_a_config():
    for mode in MODES:
        calibrator = MODELS.build(
            dict(type='mmsemi.ClassCalibrator', num_classes=4, mode=mode))
        assert isinstance(calibrator, ClassCalibrator)
        assert f'mode={mode!r}' in repr(calibrator)


def test_statistics_of_lvis_are_small():
    calibrator = ClassCalibrator(1203)
    assert calibrator.statistics.shape == (1203, 15, 3)
    assert calibrator.statistics.dtype == torch.float64
    counted = calibrator.statistics, calibrator.pending
    assert sum(part.nbytes for part in counted) < 1_000_000


def test_scores_and_outcomes_of_any_type():
    expected = ClassCalibrator(2)
    expected.update(SCORES, LABELS, OUTCOMES)
    for outcomes in (OUTCOMES.bool(), OUTCOMES.float(), OUTCOMES.double()):
        calibrator = ClassCalibrator(2)
        calibrator.update(SCORES, LABELS.int(), outcomes)
        assert calibrator.pending.equal(expected.pending)
    calibrator.update(SCORES[:0], LABELS[:0], OUTCOMES[:0])
    assert calibrator.pending.equal(expected.pending)


def test_updates_need_no_gradient():
    calibrator = ClassCalibrator(2)
    calibrator.update(SCORES.clone().requires_grad_(), LABELS, OUTCOMES)
    assert not calibrator.pending.requires_grad


def test_weights():
    calibrator = ClassCalibrator(2)
    calibrator.update(SCORES, LABELS, OUTCOMES, torch.full((9, ), 2.))
    twice = ClassCalibrator(2)
    for _ in range(2):
        twice.update(SCORES, LABELS, OUTCOMES)
    assert calibrator.pending.equal(twice.pending)


@pytest.mark.parametrize('changes, message', [
    (dict(labels=LABELS[:3]), 'of one length'),
    (dict(scores=SCORES[:, None], labels=LABELS[:, None]), 'of one length'),
    (dict(weights=SCORES[:3]), 'of one length'),
    (dict(labels=LABELS + 1), 'labels from 0 to num_classes - 1 = 1'),
    (dict(labels=LABELS - 1), 'got -1 to 0'),
    (dict(scores=SCORES * 2), r'takes scores in \[0, 1\]'),
    (dict(scores=SCORES * math.nan), 'takes scores'),
    (dict(outcomes=-OUTCOMES), 'takes outcomes'),
    (dict(weights=-SCORES), r'takes weights in \[0, inf\]'),
    (dict(weights=SCORES / 0), 'takes weights'),
])
def test_bad_predictions(changes, message):
    given = dict(scores=SCORES, labels=LABELS, outcomes=OUTCOMES)
    calibrator = ClassCalibrator(2)
    with pytest.raises(ValueError, match=message):
        calibrator.update(**{**given, **changes})
    assert calibrator.pending.count_nonzero() == 0


@pytest.mark.parametrize('settings, message', [
    (dict(num_classes=0), 'num_classes=0'),
    (dict(num_bins=0), 'num_bins=0'),
    (dict(num_bins=2.5), 'num_bins=2.5'),
    (dict(mode='isotonic'), "mode='isotonic'"),
    (dict(rest='drop'), "rest='drop'"),
    (dict(bg_mass=None), 'bg_mass=None'),
    (dict(delta=0.), 'delta=0.0'),
    (dict(kappa=-1), 'kappa=-1'),
    (dict(kappa='eb'), "kappa='eb'"),
    (dict(kappa=math.inf), 'kappa=inf'),
    (dict(min_slope=0), 'min_slope=0'),
    (dict(class_width=(.2, )), 'class_width'),
    (dict(group_width=(.2, 0.)), 'group_width'),
    (dict(groups=[0]), 'ClassCalibrator.groups'),
])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ClassCalibrator(**{'num_classes': 2, **settings})


def test_nothing_is_counted_twice():
    calibrator = ClassCalibrator(2)
    calibrator.update(SCORES, LABELS, OUTCOMES)
    total = calibrator.total
    for _ in range(3):
        calibrator.reduce()
        assert calibrator.statistics.equal(total)
        assert calibrator.total.equal(total)
    calibrator.fit()
    calibrator.update(SCORES, LABELS, OUTCOMES)
    assert calibrator.statistics.equal(total)
    calibrator.reduce()
    assert calibrator.statistics.equal(2 * total)


@pytest.mark.parametrize('first', ['decay', 'update'])
def test_earlier_passes_decay(first):
    calibrator = ClassCalibrator(2)
    calibrator.update(SCORES, LABELS, OUTCOMES)
    calibrator.reduce()
    one = calibrator.total
    if first == 'decay':
        calibrator.decay(.5)
    calibrator.update(SCORES, LABELS, OUTCOMES)
    if first == 'update':
        calibrator.decay(.5)
    calibrator.reduce()
    assert calibrator.statistics.equal(1.5 * one)
    calibrator.decay(0)
    assert calibrator.statistics.count_nonzero() == 0
    for factor in (-.1, 1.1, math.nan):
        with pytest.raises(ValueError, match='factor='):
            calibrator.decay(factor)


# Maps -----------------------------------------------------------------------


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('bg_mass', ['keep', 'drop'])
def test_nothing_measured_is_bit_identical(mode, bg_mass):
    calibrator = ClassCalibrator(6, mode=mode, bg_mass=bg_mass)
    scores = torch.tensor([0., 1e-7, .3, .5, .99999, 1.])
    labels = torch.arange(6)
    sure = torch.eye(7)[:3]
    for _ in range(2):
        assert calibrator.correct(rows()).equal(rows())
        assert calibrator.correct(sure).equal(sure)
        assert calibrator.transform(scores, labels).equal(scores)
        calibrator.fit()


def test_off_is_bit_identical():
    calibrator = ClassCalibrator(6, mode='none', bg_mass='drop')
    calibrator.update(*random_predictions())
    calibrator.fit()
    probs = rows()
    assert calibrator.correct(probs) is probs
    scores = probs[:, 0]
    assert calibrator.transform(scores, probs.argmax(1)).equal(scores)
    assert calibrator.calibration_error().isfinite().all()


@pytest.mark.parametrize('mode', ['scalar', 'bin'])
def test_no_gap_is_bit_identical(mode):
    calibrator = ClassCalibrator(1, mode=mode)
    calibrator.update(
        torch.tensor([.5, .5, .25, .25, .25, .25]),
        torch.zeros(6).long(), torch.tensor([0, 1, 0, 0, 1, 0]))
    calibrator.fit()
    probs = torch.tensor([[.2, .8], [.99999, .00001], [1., 0.]])
    assert calibrator.correct(probs).equal(probs)


def test_paper_mode():
    calibrator = fitted(mode='scalar', num_bins=5)
    assert map_of(calibrator, .9) == pytest.approx([.48])
    assert map_of(calibrator, .45, label=1) == pytest.approx([.7875])
    assert map_of(calibrator, .1, label=0) == pytest.approx([1e-4])
    assert map_of(calibrator, .9, label=1) == pytest.approx([1 - 1e-4])
    wide = fitted(mode='scalar', num_bins=5, delta=.1)
    assert map_of(wide, .1, .95) == pytest.approx([.1, .53])


def test_paper_mode_inherits_nothing():
    calibrator = fitted(num_classes=3, mode='scalar')
    assert map_of(calibrator, .9, label=2) == [.9]
    shrunk = fitted(num_classes=3, mode='scalar', kappa=20)
    gap = (-2.1 + 1.35) / 29
    assert map_of(shrunk, .9, label=2) == pytest.approx([.9 + gap])


def test_scalar_is_blind_to_gaps_that_cancel():
    scores = torch.tensor([.95] * 4 + [.55] * 4)
    outcomes = torch.tensor([1, 1, 0, 0, 1, 1, 1, 1])

    def fit(**settings):
        calibrator = ClassCalibrator(1, num_bins=10, **settings)
        calibrator.update(scores, torch.zeros(8).long(), outcomes)
        calibrator.fit()
        return map_of(calibrator, .95, .55)

    assert fit(mode='scalar') == pytest.approx([.95, .55], abs=1e-6)
    raw = dict(mode='bin', kappa=0, interpolate=False)
    assert fit(**raw, monotone=False) == pytest.approx([.5, 1 - 1e-4])
    assert fit(**raw) == pytest.approx([.75, .75])
    assert fit(mode='bin', kappa=0) == pytest.approx([.75, .75])


@pytest.mark.parametrize('kappa', [0., 5., 20., 'auto'])
def test_bins_interpolated_never_fall(kappa):
    calibrator = ClassCalibrator(
        6, groups=[0, 0, 0, 1, 1, 1], mode='bin', kappa=kappa)
    calibrator.update(*random_predictions(number=150))
    calibrator.fit()
    line = torch.linspace(0, 1, 501).double()
    for label in range(6):
        mapped = calibrator.transform(line, torch.full((501, ), label))
        assert (mapped.diff() >= -1e-12).all()
        assert mapped.min() >= 1e-4 and mapped.max() <= 1 - 1e-4


def test_bins_hold_at_their_mean_confidence():
    groups = torch.tensor([0, 1])
    calibrator = fitted(
        groups=groups, mode='bin', num_bins=5, monotone=False)
    gaps = hierarchical_gaps(calibrator.statistics, groups)[0].tolist()
    # Bins of class 0 lie at .7 and .9, its empty ones in their middle.
    assert map_of(calibrator, .1, .7, .9) == pytest.approx(
        [.1 + gaps[0], .7 + gaps[3], .9 + gaps[4]])
    # The middle of two gaps, and the last one beyond the last bin.
    assert map_of(calibrator, .8, .95) == pytest.approx(
        [.8 + (gaps[3] + gaps[4]) / 2, .95 + gaps[4]])


@pytest.mark.parametrize('mode', ['scalar', 'bin', 'platt'])
def test_maps_learn_what_they_are_shown(mode):
    """Classes of low index are under-confident, those of high one over."""
    calibrator = ClassCalibrator(6, mode=mode, kappa=5.)
    calibrator.update(*random_predictions(number=6000))
    calibrator.fit()
    scores, labels, right = random_predictions(number=6000, seed=1)
    after = ClassCalibrator(6)
    after.update(calibrator.transform(scores, labels), labels, right)
    before = ClassCalibrator(6)
    before.update(scores, labels, right)
    better = after.calibration_error() < before.calibration_error()
    # Class 2 is almost calibrated: .3 + .4 * 2 is 1.1.
    assert better[[0, 4, 5]].all()
    if mode != 'scalar':
        assert after.calibration_error().max() < .06


def test_raw_gaps_of_rare_classes_do_harm():
    """Rare classes have four predictions each, frequent ones 400."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(120) % 2
    offset = torch.tensor([.6, -.6])[groups] + .3 * torch.randn(
        120, generator=generator)

    def draw(labels):
        scores = .05 + .9 * torch.rand(len(labels), generator=generator)
        rates = torch.sigmoid(.85 * scores.logit() + offset[labels])
        right = torch.rand(len(labels), generator=generator) < rates
        return scores, labels, right, rates

    data = draw(
        torch.arange(120).repeat_interleave(torch.tensor([4, 400])[groups]))
    scores, labels, _, rates = draw(torch.arange(120).repeat_interleave(200))

    def error(**settings):
        calibrator = ClassCalibrator(120, groups=groups, **settings)
        calibrator.update(*data[:3])
        calibrator.fit()
        wrong = (calibrator.transform(scores, labels) - rates)**2
        wrong = wrong.view(120, 200).mean(1).sqrt()
        return [float(wrong[groups == group].mean()) for group in range(2)]

    none, raw = error(mode='none'), error(mode='scalar')
    shrunk, platt = error(mode='scalar', kappa=20), error()
    assert raw[0] > 1.2 * none[0] and raw[1] < none[1]
    assert platt[0] < shrunk[0] < .9 * none[0]
    assert platt[1] < .25 * none[1]


def test_platt_of_one_class():
    """The reference values, with the prior of all classes as the only one."""
    calibrator = ClassCalibrator(
        1, num_bins=10, global_width=(.5, .5), class_width=(1e-9, 1e-9))
    calibrator.update(
        torch.tensor([.9] * 4 + [.6] * 2),
        torch.zeros(6).long(), torch.tensor([1, 1, 0, 0, 1, 0]))
    calibrator.fit()
    assert map_of(calibrator, .9, .6) == pytest.approx([.717383, .498782],
                                                       abs=1e-6)
    row = torch.tensor([[.9, .1]])
    assert calibrator.correct(row)[0].tolist() == pytest.approx(
        [.717383, .282617], abs=1e-6)


def test_platt_puts_its_confidence_into_the_row():
    calibrator = ClassCalibrator(3)
    calibrator.params[0] = torch.tensor([.522609, -.216773])
    found = calibrator.correct(torch.tensor([[.9, .06, .03, .01]]))
    assert found[0].tolist() == pytest.approx(
        [.717383, .169570, .084785, .028262], abs=1e-5)


def test_temperature_is_a_slope_alone():
    calibrator = fitted(mode='temperature')
    assert calibrator.params[:, 1].tolist() == [0, 0]
    assert map_of(calibrator, .5, .5) == [.5, .5]


@pytest.mark.parametrize('mode', ['platt', 'temperature'])
def test_slopes_are_found(mode):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20000, generator=generator)
    labels = torch.arange(20000) % 2
    slopes = torch.tensor([2., .5])
    rates = torch.sigmoid(slopes[labels] * scores.logit())
    calibrator = ClassCalibrator(2, num_bins=50, mode=mode)
    calibrator.update(
        scores, labels,
        torch.rand(20000, generator=generator) < rates)
    calibrator.fit()
    assert calibrator.params[:, 0].tolist() == pytest.approx([2, .5], abs=.1)
    assert calibrator.params[:, 1].tolist() == pytest.approx([0, 0], abs=.1)


def test_classes_without_predictions_follow_their_group():
    scores, labels, right = random_predictions()
    calibrator = ClassCalibrator(8, groups=[0, 0, 0, 1, 1, 1, 0, 2])
    calibrator.update(scores, labels, right)
    calibrator.fit()
    own = [map_of(calibrator, .5, label=c)[0] for c in range(8)]
    # Class 6 has the map of its group, 7 that of all.
    assert min(own[:3]) < own[6] < max(own[:3])
    assert own[6] > own[7] > max(own[4:6])
    calibrator.set_groups([0, 0, 0, 1, 1, 1, 1, 1])
    calibrator.fit()
    moved = [map_of(calibrator, .5, label=c)[0] for c in range(8)]
    assert moved[6] == moved[7] and min(moved[3:6]) < moved[6] < own[6]
    with pytest.raises(ValueError, match='set_groups'):
        calibrator.set_groups([0, 1])


@pytest.mark.parametrize('mode', MODES)
def test_fits_are_deterministic(mode):
    first = ClassCalibrator(6, mode=mode, groups=[0, 1, 0, 1, 2, 2])
    first.update(*random_predictions())
    second = copy.deepcopy(first)
    first.fit()
    second.fit()
    second.fit()
    assert first.params.equal(second.params)


@pytest.mark.parametrize('mode', ['none', 'scalar', 'platt', 'temperature',
                                  'bin'])
def test_thresholds_of_uncorrected_scores(mode):
    calibrator = ClassCalibrator(6, mode=mode)
    calibrator.update(*random_predictions())
    calibrator.fit()
    thr = calibrator.score_thresholds(.7)
    labels = torch.arange(6)
    assert (calibrator.transform(thr, labels) >= .7).all()
    assert (calibrator.transform(thr - 1e-8, labels) < .7).all()
    scores, labels, _ = random_predictions(seed=3)
    assert (calibrator.transform(scores.double(), labels) >= .7).equal(
        scores >= thr[labels])
    with pytest.raises(ValueError, match='target=1'):
        calibrator.score_thresholds(1)


def test_a_threshold_out_of_reach():
    calibrator = fitted(mode='scalar', num_bins=5)
    assert calibrator.score_thresholds(.9).tolist() == pytest.approx(
        [1, .5625])


# Rows -----------------------------------------------------------------------


@pytest.mark.parametrize('columns', [6, 7])
def test_rows_get_the_corrected_confidence(columns):
    calibrator = ClassCalibrator(6)
    calibrator.update(*random_predictions())
    calibrator.fit()
    probs = rows(columns=columns)
    found = calibrator.correct(probs)
    labels = probs[:, :6].argmax(1)
    index = torch.arange(40), labels
    assert found.sum(1).allclose(torch.ones(40), atol=1e-6)
    assert found[index].equal(calibrator.transform(probs[index], labels))
    assert found.equal(calibrator.correct(probs, labels))
    other = (labels + 1) % 6
    assert calibrator.correct(probs, other)[index[0], other].equal(
        calibrator.transform(probs[index[0], other], other))


def test_dense_rows():
    calibrator = ClassCalibrator(6)
    calibrator.update(*random_predictions())
    calibrator.fit()
    probs = rows(40, 6).t().reshape(1, 6, 5, 8).contiguous()
    found = calibrator.correct(probs.movedim(1, -1)).movedim(-1, 1)
    flat = calibrator.correct(rows(40, 6))
    assert found.flatten(2)[0].t().equal(flat)


def test_background_is_dropped_from_all_rows():
    keep, drop = (fitted(num_classes=3, mode='scalar', bg_mass=mass)
                  for mass in ('keep', 'drop'))
    probs = torch.tensor([[.7, .1, .1, .1], [.1, .2, .6, .1]])
    kept, dropped = keep.correct(probs), drop.correct(probs)
    # Class 2 is not measured.
    assert kept[1].equal(probs[1])
    assert dropped[:, 3].tolist() == [0, 0]
    expected = kept[:, :3] / kept[:, :3].sum(1, keepdim=True)
    assert dropped[:, :3].allclose(expected)
    # There is none to drop.
    assert drop.correct(probs[:, :3]).equal(keep.correct(probs[:, :3]))


def test_similarity():
    calibrator = fitted(
        num_classes=3, mode='scalar', num_bins=5, rest='similarity')
    probs = torch.tensor([[.9, .05, .03, .02]])
    with pytest.raises(ValueError, match='ClassPrototypeHook'):
        calibrator.correct(probs)
    calibrator.set_similarity(
        torch.tensor([[9., 3., 1.], [1., 9., 1.], [0., 0., 9.]]))
    assert calibrator.similarity.tolist() == [[0, .75, .25], [.5, 0, .5],
                                              [.5, .5, 0]]
    assert calibrator.correct(probs)[0].tolist() == pytest.approx(
        [.48, .39, .13, 0])
    for table in (torch.ones(2, 2), -torch.ones(3, 3),
                  torch.full((3, 3), math.nan)):
        with pytest.raises(ValueError, match='finite numbers from 0'):
            calibrator.set_similarity(table)
    one = ClassCalibrator(1, rest='similarity')
    one.set_similarity(torch.ones(1, 1))
    assert one.similarity.tolist() == [[0.]]
    assert one.correct(torch.tensor([[.3, .7]])).tolist() == [
        pytest.approx([.3, .7])
    ]


def test_statistics_of_classes_become_shares():
    """The reference of similarity label smoothing: softmax, tau = 0.1."""
    calibrator = fitted(
        num_classes=3, mode='scalar', num_bins=5, rest='similarity')
    assert not calibrator.has_statistics
    cosines = torch.tensor([[1, .8, 0], [.8, 1, .6], [0, .6, 1]]).double()
    calibrator.set_statistics(cosines, torch.tensor([1000, 100, 1]))
    assert calibrator.has_statistics
    expected = [[0, .999665, .000335], [.880797, 0, .119203],
                [.002473, .997527, 0]]
    for found, row in zip(calibrator.similarity.tolist(), expected):
        assert found == pytest.approx(row, abs=1e-6)
    # .48 of .9 is left to the class itself, see above.
    corrected = calibrator.correct(torch.tensor([[.9, .05, .03, .02]]))
    assert corrected[0].tolist() == pytest.approx(
        [.48, .52 * .999665, .52 * .000335, 0], abs=1e-6)
    with pytest.raises(ValueError, match='num_classes=3'):
        calibrator.set_statistics(cosines[:2, :2], torch.ones(2))


def test_similarity_says_where_sure_rows_go():
    calibrator = fitted(num_classes=3, mode='scalar', num_bins=5)
    sure = torch.tensor([[1., 0, 0, 0]])
    assert calibrator.correct(sure)[0].tolist() == pytest.approx(
        [.58, .21, .21, 0])
    calibrator.set_similarity(
        torch.tensor([[0., 3., 1.], [1., 0., 1.], [1., 1., 0.]]))
    assert calibrator.correct(sure)[0].tolist() == pytest.approx(
        [.58, .315, .105, 0])


@pytest.mark.parametrize('mode', MODES)
def test_no_rows(mode):
    calibrator = fitted(num_classes=3, mode=mode)
    assert calibrator.correct(torch.zeros(0, 4)).shape == (0, 4)
    assert calibrator.transform(torch.zeros(0),
                                torch.zeros(0).long()).shape == (0, )


def test_rows_of_a_wrong_width():
    with pytest.raises(ValueError, match='num_classes = 3 .*, got 5'):
        ClassCalibrator(3).correct(torch.ones(1, 5))


def test_the_marginals_come_from_the_same_bins():
    probs = rows()
    statistics = marginal_statistics(probs, torch.arange(40) % 7)
    assert statistics[..., 0].sum(1).tolist() == [40] * 7
    assert float(statistics[..., 1].sum()) == pytest.approx(40, rel=1e-6)


# Where it lives -------------------------------------------------------------


@pytest.mark.parametrize('mode', MODES)
def test_checkpoints_keep_everything(mode, tmp_path):
    first = ClassCalibrator(6, mode=mode, groups=[0, 1, 0, 1, 2, 2])
    first.update(*random_predictions())
    first.fit()
    first.update(*random_predictions(seed=5))
    first.set_similarity(torch.rand(6, 6))
    torch.save(first.state_dict(), tmp_path / 'state.pth')
    second = ClassCalibrator(6, mode=mode)
    state = torch.load(tmp_path / 'state.pth', weights_only=True)
    assert not any('student' in key or 'teacher' in key for key in state)
    second.load_state_dict(state)
    for name, value in first.state_dict().items():
        assert value.equal(second.state_dict()[name]), name
    assert first.correct(rows()).equal(second.correct(rows()))
    first.fit()
    second.fit()
    assert first.params.equal(second.params)
    # A module that knows similarities takes a state without them.
    second.load_state_dict(ClassCalibrator(6, mode=mode).state_dict())
    assert second.similarity.shape == (0, 0)


def test_a_state_of_other_classes_is_refused():
    with pytest.raises(RuntimeError, match='size mismatch for statistics'):
        ClassCalibrator(3).load_state_dict(ClassCalibrator(4).state_dict())


def test_only_one_process_loads_what_was_pending(monkeypatch):
    first = ClassCalibrator(2)
    first.update(SCORES, LABELS, OUTCOMES)
    state = first.state_dict()
    monkeypatch.setattr('mmsemi.pseudo_labels.class_statistics.get_rank',
                        lambda: 1)
    second = ClassCalibrator(2)
    second.load_state_dict(state)
    assert second.pending.count_nonzero() == 0
    assert first.pending.count_nonzero() > 0


def test_the_device_does_not_matter():
    """Predictions may come from another device than the calibrator's."""
    on_cpu = ClassCalibrator(6, groups=[0, 1, 0, 1, 2, 2])
    on_device = copy.deepcopy(on_cpu).to(DEVICE)
    mixed = copy.deepcopy(on_cpu)
    predictions = random_predictions()
    on_cpu.update(*predictions)
    on_device.update(*(part.to(DEVICE) for part in predictions))
    mixed.update(*(part.to(DEVICE) for part in predictions))
    assert on_device.pending.device.type == DEVICE
    assert mixed.pending.equal(on_cpu.pending)
    assert on_device.pending.cpu().equal(on_cpu.pending)
    for calibrator in (on_cpu, on_device, mixed):
        calibrator.fit()
    assert on_device.params.cpu().allclose(on_cpu.params, atol=1e-9)
    found = on_device.correct(rows().to(DEVICE))
    assert found.device.type == DEVICE
    assert found.cpu().allclose(on_cpu.correct(rows()), atol=1e-6)
    assert mixed.correct(rows().to(DEVICE)).allclose(found, atol=1e-6)


def test_autocast_changes_nothing():
    plain, cast = (ClassCalibrator(6, groups=[0, 1, 0, 1, 2, 2])
                   for _ in range(2))
    plain.update(*random_predictions())
    plain.fit()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        cast.update(*random_predictions())
        cast.fit()
        found = cast.correct(rows())
    assert plain.params.equal(cast.params)
    assert found.equal(plain.correct(rows()))


def test_two_processes_fit_as_one(tmp_path):
    script = Path(__file__).with_name('calibrate_in_processes.py')
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(tmp_path)],
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=open(tmp_path / f'{rank}.err', 'w')) for rank in range(2)
    ]
    try:
        for rank, process in enumerate(processes):
            code = process.wait(timeout=240)
            assert code == 0, (tmp_path / f'{rank}.err').read_text()[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    alone = ClassCalibrator(6, groups=[0, 1, 0, 1, 2, 2])
    states = []
    for seed in range(2):
        alone.decay(.5)
        alone.update(*random_predictions(number=301, seed=seed))
        alone.fit()
        states.append({k: v.clone() for k, v in alone.state_dict().items()})
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        for state, expected in zip(found, states):
            for name, value in expected.items():
                assert value.equal(state[name]), (rank, name)
