# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Sequence

from mmseg.datasets.transforms import PackSegInputs as SegPackSegInputs

from mmsemi.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PackSegInputs(SegPackSegInputs):
    """mmseg's packing, with the view's matrix among the default meta keys.

    Args:
        meta_keys (Sequence[str]): Keys of the result dict that become meta
            information of the data sample; missing ones are left out.
            Defaults to mmseg's keys and ``homography_matrix``.
    """

    def __init__(
        self,
        meta_keys: Sequence[str] = ('img_path', 'seg_map_path', 'ori_shape',
                                    'img_shape', 'pad_shape', 'scale_factor',
                                    'flip', 'flip_direction',
                                    'reduce_zero_label', 'homography_matrix')
    ) -> None:
        super().__init__(meta_keys)
