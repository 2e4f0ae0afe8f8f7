# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Sequence

from mmseg.datasets.transforms import PackSegInputs as SegPackSegInputs

from mmsemi.registry import TRANSFORMS
from .mask_proposals import pack_proposals, pop_proposals


@TRANSFORMS.register_module()
class PackSegInputs(SegPackSegInputs):
    """mmseg's packing, with more default meta keys.

    They are the view's matrix and, for referring expressions, text and ids.

    Args:
        meta_keys (Sequence[str]): Keys of the result dict that become meta
            information of the data sample; missing ones are left out.
            Defaults to mmseg's keys, ``homography_matrix``, ``text``,
            ``ref_id``, ``sent_id`` and ``image_id``.
    """

    def __init__(
        self,
        meta_keys: Sequence[str] = ('img_path', 'seg_map_path', 'ori_shape',
                                    'img_shape', 'pad_shape', 'scale_factor',
                                    'flip', 'flip_direction',
                                    'reduce_zero_label', 'homography_matrix',
                                    'text', 'ref_id', 'sent_id', 'image_id')
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
