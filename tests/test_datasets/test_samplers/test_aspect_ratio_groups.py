# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from itertools import islice

import numpy as np
import pytest
from mmengine.dataset import BaseDataset

from mmsemi.datasets import MultiSourceDataset, MultiSourceSampler

LANDSCAPE, PORTRAIT = (4, 3), (3, 4)


class Images(BaseDataset):
    """Items that know their width and height."""

    def __init__(self, sizes):
        self.sizes = sizes
        super().__init__(serialize_data=False)

    def load_data_list(self):
        return [dict(width=w, height=h) for w, h in self.sizes]


def grouped_dataset(*counts):
    return MultiSourceDataset([
        Images([LANDSCAPE] * a + [PORTRAIT] * b) for a, b in counts
    ])


def take(sampler, num):
    return [int(i) for i in islice(iter(sampler), num)]


def group_of(dataset, index):
    info = dataset.get_data_info(index)
    return info['width'] >= info['height']


def test_batches_are_of_one_group(warnings_given):
    dataset = grouped_dataset((12, 4), (5, 9))
    sampler = MultiSourceSampler(
        dataset, 5, [2, 3], seed=0, group_by_aspect_ratio=True)
    assert sampler.grouped and not warnings_given
    stream = np.array(take(sampler, 5 * 640)).reshape(640, 5)
    assert (stream[:, :2] < 16).all() and (stream[:, 2:] >= 16).all()
    groups = np.array([[group_of(dataset, int(i)) for i in b]
                       for b in stream])
    assert (groups == groups[:, :1]).all()
    # 12 of 16 labelled images are landscape; exact after 64 batches.
    assert (groups[:, 0].reshape(10, 64).sum(1) == 48).all()
    assert len({tuple(row) for row in groups[:, 0].reshape(10, 64)}) == 10
    # Every group of a source comes in whole passes.
    for begin, end, low, high in ((0, 2, 0, 12), (0, 2, 12, 16),
                                  (2, 5, 16, 21), (2, 5, 21, 30)):
        part = stream[:, begin:end].reshape(-1)
        part = part[(part >= low) & (part < high)]
        part = part[:len(part) // (high - low) * (high - low)]
        passes = np.sort(part.reshape(-1, high - low))
        assert (passes == np.arange(low, high)).all()


@pytest.mark.parametrize('landscape', [1, 63])
def test_the_share_of_groups_drifts_nowhere(landscape):
    dataset = grouped_dataset((landscape, 64 - landscape + 3), (2, 2))
    sampler = MultiSourceSampler(
        dataset, 2, [1, 1], seed=4, group_by_aspect_ratio=True)
    stream = take(sampler, 2 * 67 * 64)[::2]
    count = sum(i < landscape for i in stream)
    assert count == landscape * 64


def test_ranks_draw_the_same_groups(ranks):
    dataset = grouped_dataset((12, 4), (5, 9))
    groups, streams = [], []
    for rank in (0, 1):
        ranks(rank, 2)
        sampler = MultiSourceSampler(
            dataset, 4, [1, 1], seed=0, group_by_aspect_ratio=True)
        stream = take(sampler, 4 * 64)
        streams.append(np.array(stream).reshape(64, 4))
        groups.append([group_of(dataset, i) for i in stream[::4]])
    assert groups[0] == groups[1]
    labeled = np.stack([s[:, :2] for s in streams], 1).reshape(-1)
    landscape = labeled[labeled < 12]
    assert len(landscape) == 48 * 4
    assert (np.sort(landscape.reshape(-1, 12)) == np.arange(12)).all()


@pytest.mark.parametrize('counts, text', [
    (((3, 0), (0, 3)), 'source 0 has no portrait image and source 1 has no '
     'landscape image'),
    (((3, 1), (3, 0)), 'source 1 has no portrait image'),
    (((0, 2), (3, 3)), 'source 0 has no landscape image'),
])
def test_an_empty_group_falls_back_with_one_warning(counts, text,
                                                    warnings_given):
    dataset = grouped_dataset(*counts)
    sampler = MultiSourceSampler(
        dataset, 5, [2, 3], seed=0, group_by_aspect_ratio=True)
    plain = MultiSourceSampler(dataset, 5, [2, 3], seed=0)
    assert take(sampler, 100) == take(plain, 100)
    assert len(warnings_given) == 1 and text in warnings_given[0]


def test_unknown_sizes_fall_back_with_one_warning(warnings_given, ranks):
    dataset = MultiSourceDataset(
        [Images([LANDSCAPE, PORTRAIT]),
         Images([(None, None)] * 3)])
    sampler = MultiSourceSampler(
        dataset, 5, [2, 3], seed=0, group_by_aspect_ratio=True)
    plain = MultiSourceSampler(dataset, 5, [2, 3], seed=0)
    assert take(sampler, 100) == take(plain, 100)
    assert len(warnings_given) == 1
    assert 'source 1 does not know width and height' in warnings_given[0]
    ranks(1, 2)
    MultiSourceSampler(dataset, 5, [2, 3], seed=0, group_by_aspect_ratio=True)
    assert len(warnings_given) == 1  # only the first rank speaks


@pytest.mark.parametrize('counts', [((3, 0), (4, 0)), ((0, 3), (0, 4))])
def test_images_of_one_group_only_need_no_grouping(counts, warnings_given):
    sampler = MultiSourceSampler(
        grouped_dataset(*counts),
        5, [2, 3],
        seed=0,
        group_by_aspect_ratio=True)
    assert len(take(sampler, 50)) == 50 and not warnings_given
