# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from types import SimpleNamespace

from mmengine.dataset import BaseDataset

from mmsemi.datasets import MultiSourceDataset, leaf_datasets


def test_all_leaves_once():
    first, second, third = (SimpleNamespace() for _ in range(3))
    repeated = SimpleNamespace(dataset=first)
    nested = SimpleNamespace(datasets=[repeated, second])
    both = SimpleNamespace(datasets=[nested, third])
    assert leaf_datasets(both) == [first, second, third]
    assert leaf_datasets(first) == [first]


def test_first_part_of_the_outermost_concatenation():
    first, second, third = (SimpleNamespace() for _ in range(3))
    nested = SimpleNamespace(datasets=[first, second])
    both = SimpleNamespace(
        dataset=SimpleNamespace(datasets=[nested, third]))
    assert leaf_datasets(both, first_only=True) == [first, second]


def test_labelled_part_of_sources():
    sets = [BaseDataset(lazy_init=True) for _ in range(3)]
    sources = MultiSourceDataset(sets[:2], lazy_init=True)
    both = SimpleNamespace(datasets=[sources, sets[2]])
    assert leaf_datasets(both) == sets
    # Of other concatenations all parts are labelled.
    assert leaf_datasets(both, labeled_only=True) == [sets[0], sets[2]]
