# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Batches with a fixed number of items from every source."""
import logging
import math
import numbers
from fractions import Fraction
from typing import (Dict, Iterator, List, Mapping, Optional, Sequence, Sized,
                    Tuple, Union)

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.logging import print_log
from torch.utils.data import BatchSampler, DataLoader, Sampler

from mmsemi.registry import DATA_SAMPLERS

GROUPS = ('portrait', 'landscape')
# Batches after which the share of landscape batches is exact again.
BLOCK = 64
# First words of the seeds, so that no two streams are the same.
ORDER_STREAM, GROUP_STREAM, BLOCK_STREAM = 1, 2, 3


class SeededIndex(int):
    """An index that carries the seed of its draw.

    Args:
        value (int): Index into the dataset.
        seed (int): Seed of the draw, at least 0 and below 2**32.
    """

    def __new__(cls, value: int, seed: int) -> 'SeededIndex':
        index = super().__new__(cls, value)
        index.seed = int(seed)
        return index

    def __reduce__(self) -> tuple:
        return SeededIndex, (int(self), self.seed)

    def __repr__(self) -> str:
        return f'SeededIndex({int(self)}, seed={self.seed})'


@DATA_SAMPLERS.register_module()
class MultiSourceSampler(Sampler):
    """Endless batches with a fixed number of items from every source.

    It takes the place of mmdet's ``MultiSourceSampler``: every batch holds
    first the items of source 0, then those of source 1, and so on. The
    stream is a pure function of (seed, rank, world size, position):

    - Each source is shuffled anew for each of its passes, and each item
      comes once per pass. Ranks get disjoint parts of a pass.
    - Every index carries a seed of its own, which
      ``mmsemi.MultiSourceDataset`` draws the item with.
    - :meth:`skip` goes to any position at once. Iterating anew starts from
      that position again.

    Args:
        dataset (Sized): ``mmsemi.MultiSourceDataset`` or another dataset
            with ``datasets`` and ``cumulative_sizes``. Only the first uses
            the seeds of the draws.
        batch_size (int): Items per batch and rank; the same as
            ``batch_size`` of the data loader.
        source_ratio (list[int | float]): Share of every source in a batch.
            Source ``i > 0`` gets ``floor(batch_size * ratio[i] /
            sum(ratio))`` items and source 0 the rest, at least 1 each.
        shuffle (bool): Whether to shuffle the sources. Defaults to True.
        seed (int, optional): Seed, the same on all ranks. None agrees on a
            random one. Defaults to None.
        group_by_aspect_ratio (bool): Whether all images of a batch, on all
            ranks, are portrait (width < height) or landscape. Batches are
            portrait as often as images of source 0. A pass is then one of
            the images of a source and group. Where a source lacks a group
            that another has, or does not know its sizes, a warning is
            given and batches are not grouped. Defaults to False.
        tied_sources (Mapping[int, int], optional): Sources that come in the
            order of another one, by number: with ``{2: 1}`` the images of
            source 2 are those of source 1, each with a draw of its own. Both
            need the same length and share. Defaults to None.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a source is empty or would get no item in a batch.

    Examples:
        >>> train_dataloader = dict(
        ...     batch_size=5,
        ...     num_workers=2,
        ...     sampler=dict(
        ...         type='mmsemi.MultiSourceSampler',
        ...         batch_size=5,
        ...         source_ratio=[1, 4]),
        ...     dataset=dict(
        ...         type='mmsemi.MultiSourceDataset',
        ...         datasets=[labeled_dataset, unlabeled_dataset]))
    """

    def __init__(self,
                 dataset: Sized,
                 batch_size: int,
                 source_ratio: List[Union[int, float]],
                 shuffle: bool = True,
                 seed: Optional[int] = None,
                 group_by_aspect_ratio: bool = False,
                 tied_sources: Optional[Mapping[int, int]] = None) -> None:
        sizes = _source_sizes(dataset)
        self.num_per_source = _items_per_source(batch_size, source_ratio,
                                                len(sizes))
        if seed is None:
            seed = sync_random_seed()
        if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
            raise TypeError(f'sampler.seed must be an int, got {seed!r}.')
        if not 0 <= seed < 2**32:
            raise ValueError('sampler.seed must be at least 0 and below '
                             f'2**32, got {seed}.')
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.batch_size = batch_size
        self.source_ratio = list(source_ratio)
        self.shuffle = shuffle
        self.seed = int(seed)

        self._offsets = [0] + list(dataset.cumulative_sizes[:-1])
        # Items of every source and group, by their index in the source.
        self._members = [[np.arange(size)] for size in sizes]
        self._phase = 0
        self.grouped = False
        if group_by_aspect_ratio:
            self._group()
        self.tied_sources = dict(tied_sources or {})
        self._check_tied(sizes)
        # By source: positions from which on its items are drawn by weight,
        # and the cumulated weights.
        self._weights: Dict[int, List[Tuple[int, np.ndarray]]] = {}
        self._orders: Dict[Tuple[int, int], Tuple[int, np.ndarray]] = {}
        self._block = (-1, 0, np.zeros(BLOCK, dtype=bool))
        self._start = 0

    def __iter__(self) -> Iterator[SeededIndex]:
        position = self._start
        while True:
            yield self._draw(position)
            position += 1

    def __len__(self) -> int:
        """Number of items in the dataset.

        It is no length of the stream, which never ends: train with
        ``IterBasedTrainLoop``.
        """
        return len(self.dataset)

    def skip(self, num_samples: int) -> None:
        """Start at an absolute position of the stream from now on.

        Args:
            num_samples (int): Position, counted in items of this rank from
                the start of the stream: iterations times batch size.
        """
        if num_samples < 0:
            raise ValueError('num_samples must be at least 0, got '
                             f'{num_samples}.')
        self._start = int(num_samples)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the stream has no epochs."""

    def set_weights(self, source: int, weights: Sequence[float],
                    position: int) -> None:
        """Draw the items of a source by weight, with replacement.

        The stream stays a pure function of its position and of the weights
        set, so the same calls after a resume give the same items.

        Args:
            source (int): Number of the source.
            weights (Sequence[float]): One per item, not negative, with a
                positive sum.
            position (int): First position, as in :meth:`skip`, that they
                hold for; after that of earlier calls. Take one that no
                loader worker has asked for yet.

        Raises:
            ValueError: If an argument does not fit.
        """
        weights = np.asarray(weights, dtype=np.float64)
        if self.grouped:
            raise ValueError('Items cannot be weighted in a sampler with '
                             'group_by_aspect_ratio=True.')
        if source not in range(len(self._members)):
            raise ValueError(f'There is no source {source} to weight; sources '
                             f'are 0 to {len(self._members) - 1}.')
        size = len(self._members[source][0])
        if weights.shape != (size, ) or not (weights >= 0).all() or not (
                0 < weights.sum() < math.inf):
            raise ValueError(
                f'Source {source} needs {size} weights from 0 with a '
                f'positive sum, got {weights.shape} with sum '
                f'{weights.sum()}.')
        known = self._weights.setdefault(source, [])
        if known and position <= known[-1][0]:
            raise ValueError(
                f'Weights from position {position} come after those from '
                f'{known[-1][0]}; give them in order.')
        known.append((int(position), np.cumsum(weights / weights.sum())))

    def _weights_at(self, source: int, position: int) -> Optional[np.ndarray]:
        for start, cumulated in reversed(self._weights.get(source, ())):
            if position >= start:
                return cumulated
        return None

    def _check_tied(self, sizes: List[int]) -> None:
        for source, other in self.tied_sources.items():
            numbers = range(len(sizes))
            if source not in numbers or other not in numbers or (
                    source == other or other in self.tied_sources):
                raise ValueError(
                    f'sampler.tied_sources={self.tied_sources} ties source '
                    f'{source} to {other}; sources are 0 to '
                    f'{len(sizes) - 1}, and no chains are allowed.')
            if sizes[source] != sizes[other] or self.num_per_source[
                    source] != self.num_per_source[other]:
                raise ValueError(
                    f'sampler.tied_sources={self.tied_sources} ties sources '
                    f'of {sizes[source]} and {sizes[other]} items with '
                    f'{self.num_per_source[source]} and '
                    f'{self.num_per_source[other]} in a batch; both numbers '
                    'must be equal.')

    def _draw(self, position: int) -> SeededIndex:
        batch, slot = divmod(position, self.batch_size)
        source = 0
        while slot >= self.num_per_source[source]:
            slot -= self.num_per_source[source]
            source += 1
        group, earlier = self._group_of(batch)
        draw = earlier * self.num_per_source[source] + slot
        members = self._members[source][group]
        # The stream of all ranks together, dealt out in turn.
        turn, place = divmod(draw * self.world_size + self.rank, len(members))
        item = members[self._order(source, group, turn)[place]]
        seed, chance = np.random.SeedSequence(
            self.seed, spawn_key=(self.rank, position)).generate_state(2)
        weights = self._weights_at(source, position)
        if weights is not None:
            place = np.searchsorted(weights, chance / 2**32, side='right')
            item = min(int(place), len(weights) - 1)
        return SeededIndex(self._offsets[source] + int(item), seed)

    def _order(self, source: int, group: int, turn: int) -> np.ndarray:
        """Return the order of a source's group in its ``turn``-th pass."""
        known, order = self._orders.get((source, group), (-1, None))
        if known != turn:
            size = len(self._members[source][group])
            order = np.arange(size)
            if self.shuffle:
                stream = self.tied_sources.get(source, source)
                order = self._rng(ORDER_STREAM, stream, group,
                                  turn).permutation(size)
            self._orders[source, group] = (turn, order)
        return order

    def _rng(self, *words: int) -> np.random.RandomState:
        # NumPy guarantees the streams of RandomState for ever, so that a
        # checkpoint resumes exactly with a later NumPy too.
        return np.random.RandomState([self.seed, *words])

    def _group_of(self, batch: int) -> Tuple[int, int]:
        """Return the group of a batch and the batches of it before."""
        if not self.grouped:
            return 0, batch
        block, place = divmod(batch, BLOCK)
        if self._block[0] != block:
            # Every block has its exact share, so that the batches before it
            # can be counted without going through them.
            before = self._landscape_batches(block)
            count = self._landscape_batches(block + 1) - before
            drawn = self._rng(BLOCK_STREAM, block).permutation(BLOCK)
            self._block = (block, before, drawn < count)
        _, before, pattern = self._block
        landscape = before + int(pattern[:place].sum())
        if pattern[place]:
            return 1, landscape
        return 0, batch - landscape

    def _landscape_batches(self, blocks: int) -> int:
        portrait, landscape = map(len, self._members[0])
        return (blocks * BLOCK * landscape + self._phase) // (
            portrait + landscape)

    def _group(self) -> None:
        members = []
        for number, source in enumerate(self.dataset.datasets):
            groups = _group_of_items(source)
            if groups is None:
                self._warn(f'source {number} does not know width and height '
                           'of its images')
                return
            members.append([np.flatnonzero(groups == g) for g in (0, 1)])
        empty = [(number, GROUPS[g]) for number, source in enumerate(members)
                 for g in (0, 1) if not len(source[g])]
        if len({name for _, name in empty}) == 1 and len(empty) == len(
                members):
            return  # All images are of one group: nothing to group.
        if empty:
            self._warn(' and '.join(f'source {number} has no {name} image'
                                    for number, name in empty))
            return
        self._members = members
        self._phase = self._rng(GROUP_STREAM).randint(
            sum(map(len, members[0])))
        self.grouped = True

    def _warn(self, reason: str) -> None:
        if self.rank == 0:
            print_log(
                f'Batches are not grouped by aspect ratio: {reason}. Set '
                'group_by_aspect_ratio=False in the sampler to silence this.',
                logger='current',
                level=logging.WARNING)


def check_batch_size(dataloader: DataLoader) -> None:
    """Raise ValueError if a loader cuts the sampler's batches elsewhere.

    Args:
        dataloader (DataLoader): Built data loader. One whose sampler is no
            :class:`MultiSourceSampler` is fine.
    """
    sampler = dataloader.sampler
    batch_size = dataloader.batch_size
    if batch_size is None:
        batch_sampler = dataloader.batch_sampler
        sampler = getattr(batch_sampler, 'sampler', sampler)
        batch_size = getattr(batch_sampler, 'batch_size', None)
        if (isinstance(sampler, MultiSourceSampler)
                and type(batch_sampler) is not BatchSampler):
            raise ValueError(
                f'{type(batch_sampler).__name__} does not keep the batches '
                'of mmsemi.MultiSourceSampler. Set batch_sampler=None in '
                'train_dataloader; the sampler itself groups images with '
                'group_by_aspect_ratio=True.')
    if (isinstance(sampler, MultiSourceSampler)
            and batch_size != sampler.batch_size):
        raise ValueError(
            f'train_dataloader.batch_size={batch_size}, but train_dataloader.'
            f'sampler.batch_size={sampler.batch_size}: batches would not '
            f'hold {sampler.num_per_source} items of the sources. Set both '
            'to the same number.')


def _source_sizes(dataset: Sized) -> List[int]:
    sources = getattr(dataset, 'datasets', None)
    if sources is not None and hasattr(dataset, 'full_init'):
        dataset.full_init()
    if sources is None or not hasattr(dataset, 'cumulative_sizes'):
        raise TypeError(
            'mmsemi.MultiSourceSampler needs a dataset made of sources, got '
            f'{type(dataset).__name__}. Set train_dataloader.dataset to dict('
            "type='mmsemi.MultiSourceDataset', datasets=[labelled, "
            'unlabelled]).')
    sizes = [len(source) for source in sources]
    empty = [i for i, size in enumerate(sizes) if size == 0]
    if empty:
        raise ValueError(
            f'Source {empty[0]} of the dataset, a '
            f'{type(sources[empty[0]]).__name__}, is empty: no batch could '
            'be filled.')
    return sizes


def _items_per_source(batch_size: int, source_ratio: Sequence,
                      num_sources: int) -> List[int]:
    if isinstance(batch_size, bool) or not isinstance(
            batch_size, numbers.Integral):
        raise TypeError(f'sampler.batch_size must be an int, got '
                        f'{batch_size!r}.')
    if batch_size < 1:
        raise ValueError(f'sampler.batch_size must be at least 1, got '
                         f'{batch_size}.')
    if not isinstance(source_ratio, (list, tuple)):
        raise TypeError('sampler.source_ratio must be a list with one number '
                        f'per source, got {source_ratio!r}.')
    if len(source_ratio) != num_sources:
        raise ValueError(
            f'sampler.source_ratio={source_ratio} has {len(source_ratio)} '
            f'numbers, but the dataset has {num_sources} sources.')
    for share in source_ratio:
        if isinstance(share, bool) or not isinstance(share, numbers.Real):
            raise TypeError(f'sampler.source_ratio={source_ratio} must hold '
                            'numbers only.')
        if not 0 < share < math.inf:
            raise ValueError(
                f'sampler.source_ratio={source_ratio} must hold positive '
                'numbers only; leave a source out of the dataset to use '
                'none of it.')
    # Fractions of the printed numbers: in floats, 0.7 of a batch of 10
    # can come out as 6.
    shares = [Fraction(str(share)) for share in source_ratio]
    counts = _divide(batch_size, shares)
    if min(counts) < 1:
        enough = max(math.ceil(sum(shares) / share) for share in shares)
        raise ValueError(
            f'sampler.batch_size={batch_size} with source_ratio='
            f'{source_ratio} gives {counts} items of the sources, and each '
            f'needs at least 1. A batch_size of {enough} works.')
    return counts


def _divide(batch_size: int, shares: Sequence[Fraction]) -> List[int]:
    rest = [math.floor(batch_size * s / sum(shares)) for s in shares[1:]]
    return [batch_size - sum(rest), *rest]


def _group_of_items(source: Sized) -> Optional[np.ndarray]:
    """Return 1 for landscape and 0 for portrait items, None if unknown."""
    groups = np.zeros(len(source), dtype=np.int64)
    for idx in range(len(source)):
        if hasattr(source, 'get_size'):
            width, height = source.get_size(idx)
        elif hasattr(source, 'get_data_info'):
            info = source.get_data_info(idx)
            width, height = info.get('width'), info.get('height')
        else:
            return None
        if width is None or height is None:
            return None
        groups[idx] = width >= height
    return groups
