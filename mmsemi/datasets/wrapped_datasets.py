# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Look behind the wrappers of a data set."""
from typing import List

from torch.utils.data import Dataset

from .multi_source import MultiSourceDataset


def leaf_datasets(dataset: Dataset,
                  labeled_only: bool = False,
                  first_only: bool = False) -> List[Dataset]:
    """List the data sets inside wrappers and concatenations.

    Args:
        dataset (Dataset): A built data set.
        labeled_only (bool): Whether to leave out the unlabelled sources of
            a :class:`MultiSourceDataset`, which are all but the first.
            Defaults to False.
        first_only (bool): Whether to take the first part alone of the
            outermost concatenation, whatever its type. Defaults to False.

    Returns:
        list[Dataset]: Those that hold data themselves, so that nothing is
        repeated.
    """
    if hasattr(dataset, 'datasets'):
        parts = dataset.datasets
        if first_only or labeled_only and isinstance(dataset,
                                                     MultiSourceDataset):
            parts = parts[:1]
        return [
            leaf for part in parts for leaf in leaf_datasets(
                part, labeled_only)
        ]
    if hasattr(dataset, 'dataset'):
        return leaf_datasets(dataset.dataset, labeled_only, first_only)
    return [dataset]
