# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import dataclasses
import math

import pytest
from mmengine.config import ConfigDict

from mmsemi.methods import WeightSchedule


def test_constant_is_the_default():
    schedule = WeightSchedule()
    assert [schedule(step) for step in (0, 1, 10**9)] == [1., 1., 1.]


def test_constant_from_a_step_on():
    schedule = WeightSchedule(weight=2., begin=3)
    assert [schedule(step) for step in range(6)] == [0, 0, 0, 2, 2, 2]


def test_linear_ramp():
    schedule = WeightSchedule(4., ramp='linear', ramp_steps=4)
    assert [schedule(step) for step in range(7)] == [0, 1, 2, 3, 4, 4, 4]


def test_sigmoid_ramp():
    schedule = WeightSchedule(2., ramp='sigmoid', ramp_steps=4)
    expected = [2 * math.exp(-5 * gap**2) for gap in (1, .75, .5, .25)]
    values = [schedule(step) for step in range(6)]
    assert values == pytest.approx([*expected, 2, 2], abs=1e-15)
    assert values[0] == pytest.approx(0.0134759, abs=1e-7)
    assert values[2] == pytest.approx(0.5730096, abs=1e-7)


@pytest.mark.parametrize('ramp, first', [('linear', 0.),
                                         ('sigmoid', math.exp(-5))])
def test_ramp_starts_at_begin(ramp, first):
    schedule = WeightSchedule(ramp=ramp, begin=10, ramp_steps=5)
    assert schedule(9) == 0
    assert schedule(10) == first
    assert 0 < schedule(14) < 1
    assert schedule(15) == 1


@pytest.mark.parametrize('config, schedule', [
    (0, WeightSchedule(0.)),
    (3, WeightSchedule(3.)),
    (0.5, WeightSchedule(0.5)),
    ({}, WeightSchedule()),
    (dict(weight=2., ramp='linear',
          ramp_steps=7), WeightSchedule(2., 'linear', 0, 7)),
    (ConfigDict(begin=4), WeightSchedule(begin=4)),
    (WeightSchedule(begin=2), WeightSchedule(begin=2)),
])
def test_from_config(config, schedule):
    assert WeightSchedule.from_config(config) == schedule


def test_schedule_cannot_change_unnoticed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WeightSchedule().weight = 2.


@pytest.mark.parametrize('config, message', [
    (-1, 'unsup_weight=-1; allowed are finite numbers from 0'),
    (math.inf, 'unsup_weight=inf'),
    (math.nan, 'unsup_weight=nan'),
    ('1', "unsup_weight='1'"),
    (None, 'unsup_weight=None'),
    (dict(weight=-0.1), 'unsup_weight.weight=-0.1'),
    (dict(weight=math.nan), 'unsup_weight.weight=nan'),
    (dict(ramp='cosine', ramp_steps=5), "unsup_weight.ramp='cosine'.*linear"),
    (dict(begin=-1), 'unsup_weight.begin=-1'),
    (dict(begin=1.5), 'unsup_weight.begin=1.5; allowed are whole numbers'),
    (dict(ramp='linear', ramp_steps=-3), 'unsup_weight.ramp_steps=-3'),
    (dict(ramp='linear', ramp_steps=2.5), 'unsup_weight.ramp_steps=2.5'),
    (dict(ramp='linear'), "ramp='linear' with ramp_steps=0"),
    (dict(ramp_steps=100), "ramp='constant' with ramp_steps=100"),
    (dict(rampup=3, weigth=1), r"unknown keys \['rampup', 'weigth'\].*'ramp'"),
])
def test_bad_configs_name_the_field(config, message):
    with pytest.raises(ValueError, match=message):
        WeightSchedule.from_config(config)
