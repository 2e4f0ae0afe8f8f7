# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The embedded digit scenes as mmdet datasets."""
from pathlib import Path
from typing import List, Optional

from mmdet.datasets import CocoDataset

from mmsemi.registry import DATASETS
from .digit_scenes import DIGIT_CLASSES
from .lvis import LVISV1FederatedDataset

DIGITS_METAINFO = dict(
    classes=DIGIT_CLASSES,
    palette=[(230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200),
             (245, 130, 48), (145, 30, 180), (70, 240, 240), (240, 50, 230),
             (210, 245, 60), (170, 110, 40)])


def check_digits_file(ann_file: str, data_root: Optional[str],
                      options: str = '') -> None:
    """Raise FileNotFoundError, with what makes the file, if it is missing.

    Args:
        ann_file (str): The annotation file.
        data_root (str, optional): Folder of the data.
        options (str): What else the command that makes them needs.
    """
    # Remote files ("s3://...") are the storage backend's to find.
    if '://' not in ann_file and not Path(ann_file).is_file():
        raise FileNotFoundError(
            f'ann_file {ann_file} does not exist. Make the digits data with: '
            'python tools/dataset_converters/make_digits.py '
            f'{data_root or "data/digits"}{options}')


@DATASETS.register_module()
class DigitsInstanceDataset(CocoDataset):
    """Digit scenes with instance masks, classes ``zero`` to ``nine``.

    Arguments are those of mmdet's ``CocoDataset``. The data come from
    ``tools/dataset_converters/make_digits.py``.

    Raises:
        FileNotFoundError: If ``ann_file`` does not exist; the message says
            which command makes it.
    """

    METAINFO = DIGITS_METAINFO

    def load_data_list(self) -> List[dict]:
        """Load the annotations.

        Returns:
            list[dict]: One entry per scene.
        """
        check_digits_file(self.ann_file, self.data_root)
        return super().load_data_list()


@DATASETS.register_module()
class LongTailedDigitsDataset(LVISV1FederatedDataset):
    """Digit scenes with a long tail of rare classes, in LVIS's format.

    As :class:`LVISV1FederatedDataset`, with the classes ``zero`` (frequent)
    to ``nine`` (rare). The data come from
    ``tools/dataset_converters/make_digits.py --long-tail``.

    Raises:
        FileNotFoundError: If ``ann_file`` does not exist; the message says
            which command makes it.
        ValueError: If the data have no long tail.
    """

    METAINFO = DIGITS_METAINFO

    def load_data_list(self) -> List[dict]:
        """Load the annotations.

        Returns:
            list[dict]: One entry per scene.
        """
        check_digits_file(self.ann_file, self.data_root, ' --long-tail 20')
        return super().load_data_list()
