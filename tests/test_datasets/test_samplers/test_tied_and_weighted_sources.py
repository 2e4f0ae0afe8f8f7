# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from mmengine.dataset import BaseDataset

from mmsemi.datasets import MultiSourceDataset, MultiSourceSampler


class Numbers(BaseDataset):
    """Items that know their size."""

    def __init__(self, size):
        self.size = size
        super().__init__(serialize_data=False)

    def load_data_list(self):
        return [dict(width=i % 2 * 2 + 1, height=2) for i in range(self.size)]


def make_sampler(sizes=(4, 6, 6), batch=5, ratio=(1, 2, 2), **kwargs):
    dataset = MultiSourceDataset([Numbers(size) for size in sizes])
    return MultiSourceSampler(
        dataset, batch, list(ratio), **dict(dict(seed=42), **kwargs))


def draw(sampler, num):
    return list(islice(iter(sampler), num))


def pairs(indices):
    return [(int(index), index.seed) for index in indices]


# Tied sources -------------------------------------------------------------


def test_tied_sources_come_in_one_order():
    drawn = draw(make_sampler(tied_sources={2: 1}), 5 * 30)
    stream = np.array(drawn).reshape(30, 5)
    assert (stream[:, 1:3] + 6 == stream[:, 3:]).all()
    # Every draw is another one of the image.
    assert len({index.seed for index in drawn}) == len(drawn)


def test_sources_are_not_tied_unless_told():
    stream = np.array(draw(make_sampler(), 5 * 30)).reshape(30, 5)
    assert (stream[:, 1:3] + 6 != stream[:, 3:]).any()


def test_other_sources_keep_their_order():
    tied = draw(make_sampler(tied_sources={2: 1}), 500)
    free = draw(make_sampler(), 500)
    for i, (a, b) in enumerate(zip(tied, free)):
        assert a.seed == b.seed
        assert i % 5 > 2 or a == b


def test_ranks_and_skip_keep_the_tie(ranks):
    for rank in range(2):
        ranks(rank, 2)
        whole = pairs(draw(make_sampler(tied_sources={2: 1}), 300))
        sampler = make_sampler(tied_sources={2: 1})
        sampler.skip(100)
        assert pairs(draw(sampler, 200)) == whole[100:]
        stream = np.array([index for index, _ in whole]).reshape(-1, 5)
        assert (stream[:, 1:3] + 6 == stream[:, 3:]).all()


@pytest.mark.parametrize('tied', [{2: 3}, {2: 2}, {-1: 1}, {2: 1, 1: 0},
                                  {'2': 1}])
def test_ties_that_make_no_sense(tied):
    with pytest.raises(ValueError, match='sampler.tied_sources=.*0 to 2'):
        make_sampler(sizes=(6, 6, 6), tied_sources=tied)


@pytest.mark.parametrize('settings', [
    dict(sizes=(4, 6, 7)),
    dict(batch=6, ratio=(2, 1, 3)),
])
def test_tied_sources_must_be_alike(settings):
    with pytest.raises(ValueError, match='both numbers must be equal'):
        make_sampler(tied_sources={2: 1}, **settings)


# Weights ------------------------------------------------------------------


def test_items_come_as_often_as_weighted():
    sampler = make_sampler()
    sampler.set_weights(0, [1, 0, 3, 0], 0)
    drawn = draw(sampler, 5 * 2000)
    counts = Counter(int(index) for index in drawn[::5])
    assert set(counts) == {0, 2}
    assert counts[2] / 2000 == pytest.approx(.75, abs=.03)


def test_other_sources_and_all_seeds_stay():
    sampler = make_sampler()
    sampler.set_weights(0, [1, 0, 3, 0], 0)
    plain = draw(make_sampler(), 500)
    for i, (a, b) in enumerate(zip(draw(sampler, 500), plain)):
        assert a.seed == b.seed
        assert i % 5 == 0 or a == b


def test_weights_hold_from_their_position_on():
    sampler, plain = make_sampler(), draw(make_sampler(), 300)
    sampler.set_weights(0, [1, 0, 0, 0], 100)
    sampler.set_weights(0, [0, 0, 0, 1], 200)
    stream = draw(sampler, 300)
    assert pairs(stream[:100]) == pairs(plain[:100])
    assert {int(i) for i in stream[100:200:5]} == {0}
    assert {int(i) for i in stream[200::5]} == {3}


def test_weights_of_a_later_source():
    sampler = make_sampler()
    sampler.set_weights(2, [0, 0, 0, 0, 1, 0], 0)
    stream = np.array(draw(sampler, 100)).reshape(20, 5)
    assert (stream[:, 3:] == 4 + 6 + 4).all()


def test_weighted_stream_is_a_function_of_the_position():
    def make():
        sampler = make_sampler()
        sampler.set_weights(0, [1, 1, 0, 0], 0)
        sampler.set_weights(0, [.1, .2, .3, .4], 150)
        return sampler

    whole = pairs(draw(make(), 400))
    for start in (0, 7, 149, 150, 320):
        sampler = make()
        sampler.skip(start)
        assert pairs(draw(sampler, 400 - start)) == whole[start:]
    # Weights that come later change nothing before.
    late = make_sampler()
    late.set_weights(0, [1, 1, 0, 0], 0)
    stream = iter(late)
    begin = pairs(islice(stream, 100))
    late.set_weights(0, [.1, .2, .3, .4], 150)
    assert begin + pairs(islice(stream, 300)) == whole


def test_ranks_draw_by_weight_apart(ranks):
    streams = []
    for rank in range(2):
        ranks(rank, 2)
        sampler = make_sampler()
        sampler.set_weights(0, [1, 1, 1, 1], 0)
        streams.append([int(i) for i in draw(sampler, 500)[::5]])
    assert streams[0] != streams[1]


def test_items_of_no_weight_at_both_ends():
    sampler = make_sampler()
    sampler.set_weights(0, [0, 1e-9, 1e-9, 0], 0)
    assert {int(i) for i in draw(sampler, 5 * 500)[::5]} == {1, 2}


@pytest.mark.parametrize('source, weights, message', [
    (0, [1, 1, 1], 'Source 0 needs 4 weights'),
    (0, [0, 0, 0, 0], 'positive sum'),
    (0, [1, -1, 1, 1], 'weights from 0'),
    (0, [1, float('nan'), 1, 1], 'weights from 0'),
    (0, [1, float('inf'), 1, 1], 'positive sum'),
    (3, [1], 'no source 3'),
    (-1, [1] * 6, 'no source -1'),
])
def test_weights_that_do_not_fit(source, weights, message):
    with pytest.raises(ValueError, match=message):
        make_sampler().set_weights(source, weights, 0)


def test_weights_come_in_order():
    sampler = make_sampler()
    sampler.set_weights(0, [1] * 4, 10)
    with pytest.raises(ValueError, match='position 10 come after .* 10'):
        sampler.set_weights(0, [1] * 4, 10)
    sampler.set_weights(1, [1] * 6, 5)


def test_groups_cannot_be_weighted():
    sampler = make_sampler(group_by_aspect_ratio=True)
    assert sampler.grouped
    with pytest.raises(ValueError, match='group_by_aspect_ratio=True'):
        sampler.set_weights(0, [1] * 4, 0)
