# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Sequence

from mmdet.datasets.transforms import PackDetInputs as DetPackDetInputs

from mmsemi.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PackDetInputs(DetPackDetInputs):
    """mmdet's packing, with the view's matrix among the default meta keys.

    Args:
        meta_keys (Sequence[str]): Keys of the result dict that become meta
            information of the data sample; missing ones are left out.
            Defaults to mmdet's keys and ``homography_matrix``.
    """

    def __init__(
        self,
        meta_keys: Sequence[str] = ('img_id', 'img_path', 'ori_shape',
                                    'img_shape', 'scale_factor', 'flip',
                                    'flip_direction', 'homography_matrix')
    ) -> None:
        super().__init__(meta_keys)
