# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The files that a config's data sets read."""
import json
import os.path as osp
from contextlib import contextmanager
from typing import Iterator, List, Mapping, Tuple

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def data_sources(dataset: Mapping,
                 where: str) -> Iterator[Tuple[str, Mapping]]:
    """Yield the data sets inside wrappers and concatenations.

    Args:
        dataset (Mapping): Config of a data set.
        where (str): Its dotted key.

    Yields:
        tuple[str, Mapping]: Dotted key and config of a data set that reads
        files itself.
    """
    if 'datasets' in dataset:
        for i, child in enumerate(dataset['datasets']):
            yield from data_sources(child, f'{where}.datasets[{i}]')
    elif isinstance(dataset.get('dataset'), Mapping):
        yield from data_sources(dataset['dataset'], f'{where}.dataset')
    else:
        yield where, dataset


def source_files(source: Mapping) -> List[str]:
    """Return the files and folders that a data set reads.

    Args:
        source (Mapping): Config of a data set.

    Returns:
        list[str]: Paths, joined to ``data_root``; none of remote files.
    """
    root = source.get('data_root') or ''
    names = [source.get(key) for key in ('ann_file', 'list_file', 'img_dir')]
    names += (source.get('data_prefix') or {}).values()
    paths = [
        osp.join(root, name) for name in names
        if isinstance(name, str) and name
    ]
    return [path for path in paths if '://' not in path]


@contextmanager
def broken_file_named(cfg: Mapping) -> Iterator[None]:
    """Say which annotation file is broken when one cannot be read.

    Args:
        cfg (Mapping): The config whose data sets are built.

    Raises:
        ValueError: If an annotation file is no JSON, with its path.
    """
    try:
        yield
    except json.JSONDecodeError:
        from mmsemi.datasets import load_coco

        # What mmdet raises does not name the file.
        for field in LOADERS:
            loader = cfg.get(field) or {}
            for _, source in data_sources(loader.get('dataset', {}), field):
                for path in source_files(source):
                    if path.endswith('.json') and osp.isfile(path):
                        load_coco(path)
        raise
