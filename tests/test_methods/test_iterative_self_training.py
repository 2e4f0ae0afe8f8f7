# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest

from mmsemi.methods.iterative_self_training import (Candidate, Unit,
                                                    held_out_size,
                                                    held_out_slice, keep_best,
                                                    plan_units, random_choices)


def test_fixed_mixes_in_every_stage():
    assert plan_units('fixed', 2) == [
        Unit(0, 0, 'human'),
        Unit(1, 0, 'mixed'),
        Unit(2, 0, 'mixed')
    ]


def test_random_follows_the_choices():
    units = plan_units('random', 2, choices=['pseudo', 'human'])
    assert [unit.source for unit in units] == ['human', 'pseudo', 'human']


@pytest.mark.parametrize('beam, per_stage', [(1, [2, 2, 2, 2]),
                                             (3, [2, 4, 6, 6]),
                                             (8, [2, 4, 8, 16])])
def test_greedy_tries_both_from_every_entry(beam, per_stage):
    units = plan_units('greedy', 4, beam)
    assert units[0] == Unit(0, 0, 'human')
    for stage, number in enumerate(per_stage, 1):
        found = [unit for unit in units if unit.stage == stage]
        assert found == [
            Unit(stage, entry, source) for entry in range(number // 2)
            for source in ('human', 'pseudo')
        ]


def test_random_choices_are_seeded_and_fair():
    assert random_choices(4, 0) == ['human', 'pseudo', 'human', 'pseudo']
    assert random_choices(4, 1) == ['pseudo', 'human', 'human', 'pseudo']
    assert random_choices(9, 3)[:4] == random_choices(4, 3)
    share = random_choices(4000, 1).count('human') / 4000
    assert abs(share - .5) < .03
    share = random_choices(4000, 1, .2).count('human') / 4000
    assert abs(share - .2) < .03


def test_keep_best_prefers_the_earlier_of_equals():
    candidates = [
        Candidate(i, 0, score=score) for i, score in enumerate([.3, .7, .7])
    ]
    assert [c.unit for c in keep_best(candidates, 2)] == [1, 2]
    assert [c.unit for c in keep_best(candidates, 9)] == [1, 2, 0]


def test_candidates_survive_a_checkpoint():
    candidate = Candidate(3, 1, ('human', 'pseudo'), .25)
    stored = candidate.to_dict()
    assert stored == dict(
        unit=3, labels=1, history=['human', 'pseudo'], score=.25)
    assert Candidate.from_dict(stored) == candidate


@pytest.mark.parametrize('number, fraction, size', [(40, .2, 8), (5, .34, 2),
                                                    (2, .4, 1)])
def test_held_out_size(number, fraction, size):
    assert held_out_size(number, fraction) == size


@pytest.mark.parametrize('number, fraction', [(4, .1), (3, .9), (10, 0),
                                              (10, 1.)])
def test_held_out_size_refuses_an_empty_side(number, fraction):
    with pytest.raises(ValueError, match='held_out_fraction'):
        held_out_size(number, fraction)


def test_held_out_slice_keeps_every_class_in_training():
    # Class 3 is in one image only, class 2 in two.
    classes = [{0, 1}, {0, 1}, {0, 2}, {0, 2}, {0, 3}, {0, 1}]
    slices = {tuple(held_out_slice(classes, .34, seed)) for seed in range(20)}
    assert len(slices) > 1
    for found in slices:
        assert len(found) == 2
        rest = set().union(*(classes[i] for i in range(6) if i not in found))
        assert rest == {0, 1, 2, 3}
        # The slice has as many classes as it can.
        assert set().union(*(classes[i] for i in found)) == {0, 1, 2}


def test_held_out_slice_is_filled_where_classes_run_out():
    classes = [{0}, {1}, {2}, {3}]
    found = held_out_slice(classes, .5, 0)
    assert len(found) == 2
    assert found == held_out_slice(classes, .5, 0) == sorted(found)
