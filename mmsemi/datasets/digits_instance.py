# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The embedded digit scenes as an mmdet dataset."""
from pathlib import Path
from typing import List

from mmdet.datasets import CocoDataset

from mmsemi.registry import DATASETS
from .digit_scenes import DIGIT_CLASSES


@DATASETS.register_module()
class DigitsInstanceDataset(CocoDataset):
    """Digit scenes with instance masks, classes ``zero`` to ``nine``.

    Arguments are those of mmdet's ``CocoDataset``. The data come from
    ``tools/dataset_converters/make_digits.py``.

    Raises:
        FileNotFoundError: If ``ann_file`` does not exist; the message says
            which command makes it.
    """

    METAINFO = dict(
        classes=DIGIT_CLASSES,
        palette=[(230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200),
                 (245, 130, 48), (145, 30, 180), (70, 240, 240),
                 (240, 50, 230), (210, 245, 60), (170, 110, 40)])

    def load_data_list(self) -> List[dict]:
        """Load the annotations.

        Returns:
            list[dict]: One entry per scene.
        """
        # Remote files ("s3://...") are the storage backend's to find.
        if '://' not in self.ann_file and not Path(self.ann_file).is_file():
            root = self.data_root or 'data/digits'
            raise FileNotFoundError(
                f'ann_file {self.ann_file} does not exist. Make the digits '
                'data with: python tools/dataset_converters/make_digits.py '
                f'{root}')
        return super().load_data_list()
