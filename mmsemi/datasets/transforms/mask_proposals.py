# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Mask proposals of an image, moved into its view."""
from typing import Optional

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import BaseDataElement

from mmsemi.datasets.proposal_store import ProposalStore
from mmsemi.registry import TRANSFORMS
from mmsemi.structures.packed_masks import PackedMasks
from mmsemi.structures.view_geometry import is_identity, warp_masks

#: Key of a result dict, and field of the data sample it is packed into.
RESULTS_KEY, SAMPLE_FIELD = 'proposals', 'mask_proposals'


@TRANSFORMS.register_module()
class LoadMaskProposals(BaseTransform):
    """Read an image's mask proposals and move them into the view.

    To be placed after all geometry, best in the branch of the teacher's view
    ('unsup_teacher'), because no other view needs them. The masks move once,
    by the recorded ``homography_matrix``, each pixel taking the nearest one;
    proposals that the view does not show stay, empty. Transforms before it
    must record what they move (mmdet's ``Resize``, ``RandomFlip`` and
    ``RandomCrop`` and mmsemi's do, mmcv's and mmseg's do not).

    Required Keys: img, img_path, ori_shape; optional homography_matrix
    (absent: nothing has moved).

    Added Keys: proposals (:class:`PackedMasks` (N, H, W) of the view), which
    ``mmsemi.PackSegInputs`` and ``mmsemi.PackDetInputs`` pack as
    ``mask_proposals`` of the data sample.

    Args:
        store (str): Folder that ``tools/generate_proposals.py`` wrote.
        max_proposals (int, optional): Keep so many of an image, the best.
            Defaults to None: all.
        min_area (int): Leave out proposals of less area, in pixels of the
            image. Defaults to 0.
        img_root (str, optional): Folder that the images were in when their
            proposals were made. Defaults to None: found by the end of
            ``img_path``.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If an argument is out of range, or the store is damaged.
    """

    records_homography = True

    def __init__(self,
                 store: str,
                 max_proposals: Optional[int] = None,
                 min_area: int = 0,
                 img_root: Optional[str] = None) -> None:
        if max_proposals is not None and (isinstance(
                max_proposals, bool) or not isinstance(max_proposals, int)
                                          or max_proposals < 1):
            raise ValueError(f'LoadMaskProposals.max_proposals='
                             f'{max_proposals!r}; allowed are whole numbers '
                             'from 1, and None.')
        if not isinstance(min_area, (int, float)) or min_area < 0:
            raise ValueError(f'LoadMaskProposals.min_area={min_area!r}; '
                             'allowed are numbers from 0.')
        self.store = ProposalStore(store)
        self.max_proposals = max_proposals
        self.min_area = min_area
        self.img_root = img_root

    def transform(self, results: dict) -> dict:
        """Load and move the proposals.

        Args:
            results (dict): Result dict, keys as in the class docstring.

        Returns:
            dict: The same dict with ``proposals``.

        Raises:
            KeyError: If the image is not in the store.
            ValueError: If its proposals are of another size, if a transform
                moved pixels without recording it, or if the store is
                damaged.
        """
        path = results['img_path']
        found = self.store.read(self.store.find_key(path, self.img_root))
        if tuple(found.shape) != tuple(results['ori_shape'][:2]):
            raise ValueError(
                f'{path} has the size {tuple(results["ori_shape"][:2])}, but '
                f'its proposals in {self.store.path} are for '
                f'{tuple(found.shape)} (height, width). Make them again from '
                'these images.')
        if self.min_area:
            found = found[np.flatnonzero(found.area >= self.min_area)]
        if self.max_proposals is not None:
            found = found[:self.max_proposals]
        masks = self._to_view(found.packed(), results)
        # Here, where loader processes do it, and not in the training's.
        results[RESULTS_KEY] = masks.measure()
        return results

    @staticmethod
    def _to_view(masks: PackedMasks, results: dict) -> PackedMasks:
        matrix = results.get('homography_matrix')
        matrix = torch.eye(3) if matrix is None else torch.as_tensor(
            np.asarray(matrix))
        shape = tuple(results['img'].shape[:2])
        moved = not is_identity(matrix)
        flipped = bool(torch.linalg.det(matrix.double()[:2, :2]) < 0)
        mirrored = bool(results.get('flip')) and results.get(
            'flip_direction') != 'diagonal'
        if mirrored != flipped or (
                not moved and shape != masks.shape[1:]):
            raise ValueError(
                f'A transform before LoadMaskProposals moved the pixels of '
                f'{results["img_path"]} without recording it in '
                "'homography_matrix', so that its proposals would land on "
                'the wrong pixels. Use transforms that record it, such as '
                'mmdet.Resize, mmdet.RandomFlip and mmdet.RandomCrop, which '
                'move label maps (gt_seg_map), too.')
        if not moved:
            return masks
        return PackedMasks(
            warp_masks(masks.data, matrix, shape), masks.num_masks)

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(store={str(self.store.path)!r}, '
                f'max_proposals={self.max_proposals}, '
                f'min_area={self.min_area}, img_root={self.img_root!r})')


def pack_proposals(sample: BaseDataElement,
                   proposals: Optional[PackedMasks]) -> None:
    """Give a data sample its mask proposals.

    Args:
        sample (BaseDataElement): Gets the field ``mask_proposals``.
        proposals (PackedMasks, optional): None does nothing.
    """
    if proposals is not None:
        sample.set_data({SAMPLE_FIELD: proposals})


def pop_proposals(results: dict) -> Optional[PackedMasks]:
    """Take mask proposals out of a result dict.

    Args:
        results (dict): mmdet's boxes go by the same key and stay.

    Returns:
        PackedMasks or None: None if there are none.
    """
    if isinstance(results.get(RESULTS_KEY), PackedMasks):
        return results.pop(RESULTS_KEY)
    return None
