# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math
import pickle
import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ConcatDataset, pseudo_collate
from mmengine.registry import DATA_SAMPLERS as ROOT_DATA_SAMPLERS
from mmengine.runner import Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import BatchSampler, DataLoader

from mmsemi.datasets import (MultiSourceDataset, MultiSourceSampler,
                             SeededIndex, check_batch_size)
from mmsemi.datasets.samplers import multi_source_sampler as module


class Source(BaseDataset):
    """Items (name, number, three random numbers)."""

    def __init__(self, name, size, sizes=None, **kwargs):
        self.name, self.size, self.sizes = name, size, sizes
        super().__init__(
            metainfo=dict(classes=('a', )),
            pipeline=[self.draw],
            serialize_data=False,
            **kwargs)

    def load_data_list(self):
        infos = [dict(number=i) for i in range(self.size)]
        for info, (width, height) in zip(infos, self.sizes or []):
            info.update(width=width, height=height)
        return infos

    def draw(self, info):
        return dict(
            item=f'{self.name}{info["number"]}',
            noise=(random.random(), float(np.random.rand()),
                   float(torch.rand(()))))


def make_dataset(*sizes):
    return MultiSourceDataset(
        [Source('abcdef'[i], size) for i, size in enumerate(sizes)])


def take(sampler, num, skip=0):
    return [int(i) for i in islice(iter(sampler), skip, skip + num)]


# composition


@pytest.mark.parametrize('batch_size, ratio, expected', [
    (5, [1, 4], [1, 4]),
    (5, [0.2, 0.8], [1, 4]),
    (10, [0.3, 0.7], [3, 7]),
    (10, (1, 1), [5, 5]),
    (6, [1, 4], [2, 4]),
    (7, [3, 1], [6, 1]),
    (2, [1, 1], [1, 1]),
    (10, [0.1, 0.2, 0.7], [1, 2, 7]),
    (100, [0.71, 0.29], [71, 29]),
    (3, [2], [3]),
])
def test_every_batch_is_made_of_the_sources_in_turn(batch_size, ratio,
                                                    expected):
    dataset = make_dataset(*[11 + i for i in range(len(ratio))])
    sampler = MultiSourceSampler(dataset, batch_size, ratio, seed=0)
    assert sampler.num_per_source == expected
    one = [s for s, num in enumerate(expected) for _ in range(num)]
    sources = np.searchsorted(
        dataset.cumulative_sizes, take(sampler, 40 * batch_size), 'right')
    assert sources.tolist() == one * 40


def test_same_division_as_mmdet_wherever_floats_are_exact():
    for batch_size in range(2, 20):
        for ratio in ([1, 1], [1, 2], [1, 4], [3, 1], [2, 1]):
            rest = int(batch_size * ratio[1] / sum(ratio))
            if rest == 0:
                continue
            sampler = MultiSourceSampler(
                make_dataset(3, 4), batch_size, ratio, seed=0)
            assert sampler.num_per_source == [batch_size - rest, rest]


def test_works_on_mmengines_concat_dataset():
    dataset = ConcatDataset([Source('a', 3), Source('b', 8)])
    sampler = MultiSourceSampler(dataset, 5, [1, 4], seed=0)
    flags = [i >= 3 for i in take(sampler, 50)]
    assert flags == [False, True, True, True, True] * 10


def test_is_built_by_name():
    sampler = ROOT_DATA_SAMPLERS.build(
        dict(
            type='mmsemi.MultiSourceSampler',
            batch_size=5,
            source_ratio=[1, 4]),
        default_args=dict(dataset=make_dataset(2, 3), seed=7))
    assert type(sampler) is MultiSourceSampler and sampler.seed == 7


def test_runner_builds_the_loader():
    loader = Runner.build_dataloader(
        dict(
            batch_size=5,
            num_workers=0,
            sampler=dict(
                type='mmsemi.MultiSourceSampler',
                batch_size=5,
                source_ratio=[1, 4]),
            collate_fn=dict(type='pseudo_collate'),
            dataset=make_dataset(2, 8)),
        seed=3)
    check_batch_size(loader)
    assert loader.sampler.seed == 3
    for batch in islice(loader, 4):
        assert [item[0] for item in batch['item']] == list('abbbb')


def test_a_lazy_dataset_is_loaded():
    dataset = MultiSourceDataset([Source('a', 2, lazy_init=True)],
                                 lazy_init=True)
    assert sorted(take(MultiSourceSampler(dataset, 2, [1], seed=0),
                       2)) == [0, 1]


# passes


def test_each_pass_holds_each_item_once_in_a_new_order():
    sampler = MultiSourceSampler(make_dataset(7, 10), 5, [2, 3], seed=3)
    stream = np.array(take(sampler, 5 * 70)).reshape(70, 5)
    for part, size, offset in ((stream[:, :2], 7, 0), (stream[:, 2:], 10, 7)):
        passes = part.reshape(-1, size)
        assert (np.sort(passes) == offset + np.arange(size)).all()
        assert len({tuple(p) for p in passes}) == len(passes)


def test_sources_of_one_size_are_shuffled_apart():
    sampler = MultiSourceSampler(make_dataset(20, 20), 2, [1, 1], seed=0)
    stream = np.array(take(sampler, 40)).reshape(20, 2)
    assert (stream[:, 0] != stream[:, 1] - 20).any()


def test_without_shuffle_the_order_is_kept():
    sampler = MultiSourceSampler(
        make_dataset(2, 3), 3, [1, 2], shuffle=False, seed=0)
    assert take(sampler, 12) == [0, 2, 3, 1, 4, 2, 0, 3, 4, 1, 2, 3]


def test_a_source_smaller_than_its_part_of_a_batch():
    sampler = MultiSourceSampler(make_dataset(1, 2), 8, [3, 5], seed=0)
    counts = Counter(take(sampler, 16))
    assert counts == {0: 6, 1: 5, 2: 5}


def test_the_stream_depends_on_the_seed_only():
    dataset = make_dataset(9, 9)
    first = [(int(i), i.seed) for i in islice(
        iter(MultiSourceSampler(dataset, 4, [1, 1], seed=1)), 100)]
    np.random.seed(5)
    torch.manual_seed(5)
    again = [(int(i), i.seed) for i in islice(
        iter(MultiSourceSampler(dataset, 4, [1, 1], seed=1)), 100)]
    assert first == again
    other = MultiSourceSampler(dataset, 4, [1, 1], seed=2)
    assert take(other, 100) != [i for i, _ in first]


def test_the_stream_never_changes():
    # A checkpoint must resume with any later NumPy and mmsemi.
    sampler = MultiSourceSampler(make_dataset(4, 6), 5, [2, 3], seed=42)
    drawn = list(islice(iter(sampler), 10))
    assert [int(i) for i in drawn] == [1, 2, 7, 6, 8, 3, 0, 4, 5, 9]
    assert [i.seed for i in drawn[:3]] == [
        3142992634, 3908812709, 2518636028
    ]


def test_without_a_seed_the_ranks_agree_on_one(monkeypatch):
    monkeypatch.setattr(module, 'sync_random_seed', lambda: 77)
    sampler = MultiSourceSampler(make_dataset(4, 6), 5, [2, 3])
    assert sampler.seed == 77
    given = MultiSourceSampler(make_dataset(4, 6), 5, [2, 3], seed=77)
    assert take(sampler, 50) == take(given, 50)


def test_length_and_set_epoch():
    sampler = MultiSourceSampler(make_dataset(4, 6), 5, [2, 3], seed=0)
    assert len(sampler) == 10
    before = take(sampler, 20)
    sampler.set_epoch(3)
    assert take(sampler, 20) == before


# ranks


@pytest.mark.parametrize('world_size', [2, 3])
def test_ranks_share_each_pass_without_overlap(ranks, world_size):
    # 12 and 24 are multiples of what all ranks draw for one batch.
    dataset = make_dataset(12, 24)
    streams, seeds = [], set()
    for rank in range(world_size):
        ranks(rank, world_size)
        sampler = MultiSourceSampler(dataset, 6, [1, 2], seed=5)
        drawn = list(islice(iter(sampler), 6 * 24))
        streams.append(np.array(drawn).reshape(24, 6))
        seeds |= {i.seed for i in drawn}
    assert len(seeds) == world_size * 6 * 24
    for begin, end, low, size in ((0, 2, 0, 12), (2, 6, 12, 24)):
        # Batch by batch, all ranks together.
        together = np.concatenate([s[:, begin:end] for s in streams], axis=1)
        passes = np.sort(together.reshape(-1, size))
        assert (passes == low + np.arange(size)).all()


def test_a_rank_of_many_sees_what_a_single_one_would(ranks):
    dataset = make_dataset(5, 7)
    ranks(0, 1)
    whole = np.array(
        take(MultiSourceSampler(dataset, 4, [1, 1], seed=1),
             40)).reshape(10, 2, 2)
    parts = []
    for rank in (0, 1):
        ranks(rank, 2)
        parts.append(
            np.array(
                take(MultiSourceSampler(dataset, 2, [1, 1], seed=1),
                     20)).reshape(10, 2))
    assert (np.stack(parts, axis=-1) == whole).all()


# resume


@pytest.mark.parametrize('group', [False, True])
@pytest.mark.parametrize('num', [0, 1, 5, 13, 1000])
def test_skip_equals_the_stream_from_there(num, group):
    sizes = [(4, 3)] * 5 + [(3, 4)] * 4
    dataset = MultiSourceDataset(
        [Source('a', 9, sizes=sizes),
         Source('b', 9, sizes=sizes)])

    def make():
        return MultiSourceSampler(
            dataset, 5, [2, 3], seed=9, group_by_aspect_ratio=group)

    whole = list(islice(iter(make()), num, num + 30))
    resumed = make()
    assert resumed.grouped is group
    resumed.skip(num)
    for _ in range(2):  # iterating anew starts from the same place
        part = list(islice(iter(resumed), 30))
        assert part == whole
        assert [i.seed for i in part] == [i.seed for i in whole]
    resumed.skip(0)
    assert take(resumed, 10) == take(make(), 10)


def test_two_iterators_do_not_disturb_each_other():
    sampler = MultiSourceSampler(make_dataset(4, 6), 5, [2, 3], seed=0)
    expected = take(sampler, 60)
    first, second = iter(sampler), iter(sampler)
    mixed = [(int(next(first)), int(next(second))) for _ in range(30)]
    mixed += [(int(next(first)), ) * 2 for _ in range(30)]
    assert [a for a, _ in mixed] == expected
    assert [b for _, b in mixed[:30]] == expected[:30]


def test_a_far_skip_costs_nothing():
    sampler = MultiSourceSampler(make_dataset(4, 6), 5, [2, 3], seed=0)
    sampler.skip(10**9)
    assert len(take(sampler, 5)) == 5
    with pytest.raises(ValueError, match='num_samples.*-1'):
        sampler.skip(-1)


def test_sampler_is_picklable_at_any_place():
    sampler = MultiSourceSampler(make_dataset(4, 6), 5, [2, 3], seed=0)
    sampler.skip(7)
    expected = take(sampler, 20)
    assert take(pickle.loads(pickle.dumps(sampler)), 20) == expected


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_seeded_index_survives_pickling(protocol):
    index = pickle.loads(pickle.dumps(SeededIndex(5, seed=9), protocol))
    assert type(index) is SeededIndex and index == 5 and index.seed == 9
    assert repr(index) == 'SeededIndex(5, seed=9)'


def make_loader(dataset, num_workers):
    return DataLoader(
        dataset,
        batch_size=5,
        sampler=MultiSourceSampler(dataset, 5, [2, 3], seed=1),
        num_workers=num_workers,
        collate_fn=pseudo_collate)


def test_data_are_the_same_with_any_workers_and_after_resume():
    dataset = make_dataset(4, 6)
    torch.manual_seed(0)
    whole = list(islice(iter(make_loader(dataset, 0)), 8))
    noise = [n for batch in whole for n in zip(*batch['noise'])]
    assert len(set(noise)) == 40
    for num_workers, begin in ((0, 3), (1, 0), (2, 5)):
        # What else drew random numbers must not matter.
        torch.manual_seed(num_workers + 1)
        np.random.seed(num_workers + 1)
        random.seed(num_workers + 1)
        iterator = _InfiniteDataloaderIterator(
            make_loader(dataset, num_workers))
        iterator.skip_iter(begin)
        assert list(islice(iterator, 8 - begin)) == whole[begin:]
        del iterator


# errors instead of hangs


@pytest.mark.parametrize('batch_size, ratio, enough', [
    (2, [4, 1], 5),
    (1, [1, 1], 2),
    (2, [1, 4, 4], 9),
    (3, [1, 1, 8], 10),
    (1, [0.999, 0.001], 1000),
])
def test_a_source_that_rounds_to_nothing(batch_size, ratio, enough):
    dataset = make_dataset(*[12] * len(ratio))
    with pytest.raises(
            ValueError,
            match=f'batch_size={batch_size} .*source_ratio=.*at least 1.*'
            f'batch_size of {enough} works'):
        MultiSourceSampler(dataset, batch_size, ratio, seed=0)
    MultiSourceSampler(dataset, enough, ratio, seed=0)


@pytest.mark.parametrize('empty', [0, 1])
@pytest.mark.parametrize('kind', [ConcatDataset, MultiSourceDataset])
def test_an_empty_source(kind, empty):
    sizes = [3, 3]
    sizes[empty] = 0
    with pytest.raises(ValueError, match=f'Source {empty} .*is empty'):
        dataset = kind([Source('a', sizes[0]), Source('b', sizes[1])])
        MultiSourceSampler(dataset, 5, [1, 4], seed=0)


@pytest.mark.parametrize('kwargs, error, text', [
    (dict(batch_size=0), ValueError, 'batch_size must be at least 1, got 0'),
    (dict(batch_size=-5), ValueError, 'batch_size must be at least 1'),
    (dict(batch_size=5.), TypeError, 'batch_size must be an int'),
    (dict(batch_size=True), TypeError, 'batch_size must be an int'),
    (dict(source_ratio='14'), TypeError, 'source_ratio must be a list'),
    (dict(source_ratio=[1, 2, 4]), ValueError, 'has 3 numbers, but the '
     'dataset has 2 sources'),
    (dict(source_ratio=[1]), ValueError, 'has 1 numbers'),
    (dict(source_ratio=[1, '4']), TypeError, 'numbers only'),
    (dict(source_ratio=[1, 0]), ValueError, 'positive'),
    (dict(source_ratio=[2, -1]), ValueError, 'positive'),
    (dict(source_ratio=[1, math.inf]), ValueError, 'positive'),
    (dict(source_ratio=[1, math.nan]), ValueError, 'positive'),
    (dict(seed=-1), ValueError, 'seed must be at least 0'),
    (dict(seed=2**32), ValueError, 'seed must be'),
    (dict(seed=1.5), TypeError, 'seed must be an int, got 1.5'),
])
def test_bad_arguments(kwargs, error, text):
    args = dict(batch_size=5, source_ratio=[1, 4], seed=0)
    with pytest.raises(error, match=text):
        MultiSourceSampler(make_dataset(3, 3), **{**args, **kwargs})


@pytest.mark.parametrize('dataset', [Source('a', 3), [1, 2, 3]])
def test_a_dataset_without_sources(dataset):
    with pytest.raises(TypeError, match="type='mmsemi.MultiSourceDataset'"):
        MultiSourceSampler(dataset, 5, [1, 4])


# check_batch_size


def test_check_batch_size():
    dataset = make_dataset(4, 6)
    sampler = MultiSourceSampler(dataset, 5, [2, 3], seed=0)
    check_batch_size(DataLoader(dataset, batch_size=5, sampler=sampler))
    check_batch_size(DataLoader(dataset, batch_size=4))
    check_batch_size(DataLoader(dataset, batch_size=None))
    check_batch_size(
        DataLoader(dataset, batch_sampler=BatchSampler(sampler, 5, True)))
    text = r'batch_size=4, but .*sampler.batch_size=5.*\[2, 3\]'
    with pytest.raises(ValueError, match=text):
        check_batch_size(DataLoader(dataset, batch_size=4, sampler=sampler))
    with pytest.raises(ValueError, match=text):
        check_batch_size(
            DataLoader(dataset, batch_sampler=BatchSampler(sampler, 4, True)))

    class Regroup(BatchSampler):
        pass

    with pytest.raises(ValueError, match='Regroup does not keep the batches'):
        check_batch_size(
            DataLoader(dataset, batch_sampler=Regroup(sampler, 5, True)))
