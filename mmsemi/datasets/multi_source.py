# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Labelled and unlabelled sources in one dataset."""
import os.path as osp
import random
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence, Union

import numpy as np
import torch
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.registry import DATASETS as ROOT_DATASETS

from mmsemi.registry import DATASETS
from .samplers import SeededIndex
from .transforms.view_checks import check_source_pipeline


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch on the CPU, and restore them after.

    Args:
        seed (int): Seed, at least 0 and below 2**32.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed would also seed the GPUs, which are not restored.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@DATASETS.register_module()
class MultiSourceDataset(ConcatDataset):
    """Several sources one after the other, e.g. labelled and unlabelled.

    It is mmengine's ``ConcatDataset`` with three differences. All sources
    share one ``metainfo``, and a source without classes takes over that of
    the first. An index that carries a seed (``SeededIndex``, from
    ``mmsemi.MultiSourceSampler``) is drawn with that seed and leaves the
    random states of Python, NumPy and torch as they were: a sample then
    depends neither on the loader's workers nor on a resume. And a source
    that is empty or gives no sample is an error that names it.

    Args:
        datasets (list[dict | BaseDataset]): Sources, the labelled one
            first. One source alone is fine too.
        lazy_init (bool): Whether the sources are loaded only when they are
            needed. Defaults to False.
        ignore_keys (str | list[str], optional): Keys of ``metainfo`` that
            may differ. Defaults to None.
        max_refetch (int): How many other items of a source are tried when
            its pipeline returns None. Defaults to 100.

    Raises:
        TypeError: If a source is neither a dict nor a dataset.
        ValueError: If there is no source, if one is empty, if their meta
            information differs, or if the pipeline of an unlabelled source
            looks for labels.
        FileNotFoundError: If an mmseg dataset's list or folder is missing.
    """

    def __init__(self,
                 datasets: Sequence[Union[dict, BaseDataset]],
                 lazy_init: bool = False,
                 ignore_keys: Union[str, List[str], None] = None,
                 max_refetch: int = 100) -> None:
        if not isinstance(datasets, (list, tuple)):
            raise TypeError('MultiSourceDataset.datasets must be a list of '
                            f'datasets, got {type(datasets).__name__}.')
        if not datasets:
            raise ValueError('MultiSourceDataset.datasets is empty; give at '
                             'least one source.')
        if isinstance(ignore_keys, str):
            ignore_keys = [ignore_keys]
        self.ignore_keys = list(ignore_keys or [])
        self.max_refetch = max_refetch
        self.datasets = [_build(i, d) for i, d in enumerate(datasets)]
        for number, source in enumerate(self.datasets):
            check_source_pipeline(
                getattr(source, 'pipeline', None),
                f'Source {number} of MultiSourceDataset',
                has_masks=any(
                    'seg' in key
                    for key in getattr(source, 'data_prefix', None) or ()))
        for number, source in enumerate(self.datasets[1:], 1):
            self._share_metainfo(number, source)
        self._metainfo = self.datasets[0].metainfo
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        """Load all sources."""
        if self._fully_initialized:
            return
        for number, source in enumerate(self.datasets):
            with _empty_is_named(number, type(source).__name__):
                if hasattr(source, 'full_init'):
                    source.full_init()
            if len(source) == 0:
                raise ValueError(_empty_text(number, type(source).__name__))
        super().full_init()

    def __getitem__(self, idx: int) -> Any:
        """Get an item of a source after its pipeline.

        Args:
            idx (int): Index over all sources. A ``SeededIndex`` is drawn
                with its seed.

        Returns:
            Any: What the source's pipeline returns.

        Raises:
            ValueError: If the source gives no sample.
        """
        if not self._fully_initialized:
            self.full_init()
        number, item = self._get_ori_dataset_idx(int(idx))
        if isinstance(idx, SeededIndex):
            with seeded(idx.seed):
                return self._fetch(number, item)
        return self._fetch(number, item)

    def _fetch(self, number: int, item: int) -> Any:
        source = self.datasets[number]
        tries = 1 if getattr(source, 'test_mode', False) else \
            self.max_refetch + 1
        first = item
        for _ in range(tries):
            data = _get(source, item)
            if data is not None:
                return data
            item = np.random.randint(len(source))
        raise ValueError(
            f'Source {number}, a {type(source).__name__}, gave no sample in '
            f'{tries} tries, the first with its item {first}: the pipeline '
            'returned None each time. Look at the transforms that may drop '
            'an image, such as RandomCrop, FilterAnnotations or a loader '
            'with ignore_empty=True.')

    def _share_metainfo(self, number: int, source: Any) -> None:
        """Hand meta information down, raise where it differs."""
        first, own = self.datasets[0].metainfo, source.metainfo
        if not own.get('classes'):
            own = {k: v for k, v in own.items() if not _is_blank(v)}
        wrong = [
            key for key, value in own.items() if key not in self.ignore_keys
            and (key not in first or not _same(first[key], value))
        ]
        if wrong:
            listed = '; '.join(
                f'{key}: {_short(first.get(key))} in source 0, '
                f'{_short(own[key])} in source {number}' for key in wrong)
            raise ValueError(
                'The sources of MultiSourceDataset differ in their metainfo '
                f'({listed}). Give them the same metainfo=dict(...); an '
                'mmsemi.UnlabeledImageDataset without metainfo takes over '
                'that of source 0.')
        source._metainfo = {**first, **own}


def _build(number: int, source: Union[dict, BaseDataset]) -> Any:
    if isinstance(source, Mapping):
        config = source
        with _empty_is_named(number, str(config.get('type'))):
            try:
                source = ROOT_DATASETS.build(config)
            except AssertionError as error:
                # mmseg asserts that its files exist, partly without a word.
                missing = _missing_files(config)
                if not missing:
                    raise
                raise FileNotFoundError(
                    f'Source {number} of MultiSourceDataset, a '
                    f'{config.get("type")}: there is no '
                    f'{", ".join(missing)}. Check data_root, ann_file and '
                    'data_prefix.') from error
    if not hasattr(source, '__getitem__') or not isinstance(
            getattr(source, 'metainfo', None), Mapping):
        raise TypeError(
            f'Source {number} of MultiSourceDataset must be a config dict or '
            'an mmengine dataset with metainfo, got '
            f'{type(source).__name__}.')
    return source


def _missing_files(config: Mapping) -> List[str]:
    names = [config.get('ann_file')]
    names += (config.get('data_prefix') or {}).values()
    paths = [
        osp.join(config.get('data_root') or '', name) for name in names if name
    ]
    return [path for path in paths if not osp.exists(path)]


@contextmanager
def _empty_is_named(number: int, name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        # What mmengine's BaseDataset says when it packs an empty list.
        if 'need at least one array to concatenate' in str(error):
            raise ValueError(_empty_text(number, name)) from error
        raise


def _empty_text(number: int, name: str) -> str:
    return (f'Source {number} of MultiSourceDataset, a {name}, is empty. '
            'Check ann_file, data_prefix and indices; if its images have no '
            'annotations, filter_cfg.filter_empty_gt must be False.')


def _get(source: Any, item: int) -> Optional[Any]:
    # BaseDataset would itself try up to 1000 other items, long enough to
    # look like a hang.
    if getattr(type(source), '__getitem__', None) is BaseDataset.__getitem__:
        return source.prepare_data(item)
    return source[item]


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value,
                                        (list, tuple)) and not value)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(
            _same(first[k], second[k]) for k in first)
    return first == second


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'
