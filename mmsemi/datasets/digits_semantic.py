# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The embedded digit scenes as an mmseg dataset."""
from pathlib import Path
from typing import Any, List

from mmseg.datasets import BaseSegDataset

from mmsemi.registry import DATASETS
from .digit_scenes import DIGIT_CLASSES


@DATASETS.register_module()
class DigitsSemanticDataset(BaseSegDataset):
    """Digit scenes with label maps: background, then ``zero`` to ``nine``.

    Arguments are those of mmseg's ``BaseSegDataset``; ``ann_file`` is a list
    of file names without suffix. Without ``seg_map_path`` in ``data_prefix``
    the scenes are unlabelled. The data come from
    ``tools/dataset_converters/make_digits.py``.

    Args:
        img_suffix (str): Defaults to '.png'.
        seg_map_suffix (str): Defaults to '.png'.
        **kwargs: Other arguments of ``BaseSegDataset``.

    Raises:
        FileNotFoundError: If the list or the folder of images does not
            exist; the message says which command makes them.
    """

    METAINFO = dict(
        classes=('background', ) + DIGIT_CLASSES,
        palette=[[0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25],
                 [0, 130, 200], [245, 130, 48], [145, 30, 180], [70, 240, 240],
                 [240, 50, 230], [210, 245, 60], [170, 110, 40]])

    def __init__(self,
                 img_suffix: str = '.png',
                 seg_map_suffix: str = '.png',
                 **kwargs: Any) -> None:
        super().__init__(
            img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)

    def load_data_list(self) -> List[dict]:
        """List the scenes.

        Returns:
            list[dict]: One entry per scene.
        """
        needed = self.ann_file or self.data_prefix['img_path']
        # Remote files ("s3://...") are the storage backend's to find.
        if '://' not in needed and not Path(needed).exists():
            root = self.data_root or 'data/digits'
            raise FileNotFoundError(
                f'{needed} does not exist. Make the digits data with: '
                f'python tools/dataset_converters/make_digits.py {root}. Run '
                'on data that are there, it adds the lists.')
        return super().load_data_list()
