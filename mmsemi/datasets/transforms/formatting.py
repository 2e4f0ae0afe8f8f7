# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Sequence

from mmdet.datasets.transforms import PackDetInputs as DetPackDetInputs

from mmsemi.registry import TRANSFORMS
from .mask_proposals import pack_proposals, pop_proposals


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

    def transform(self, results: dict) -> dict:
        """Pack; mask proposals become ``mask_proposals`` of the sample.

        Args:
            results (dict): Result dict from the data pipeline.

        Returns:
            dict: ``inputs`` and ``data_samples``.
        """
        proposals = pop_proposals(results)
        packed = super().transform(results)
        pack_proposals(packed['data_samples'], proposals)
        return packed
