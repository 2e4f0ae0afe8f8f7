# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Views of images whose every pixel is labelled: mixing and checks."""
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from mmseg.structures import SegDataSample
from torch import Tensor

from mmsemi.datasets.transforms.mix import BatchMix, MixPlan
from mmsemi.registry import TRANSFORMS
from mmsemi.structures.dense_pseudo_label import DenseTargets

PARTNER_VIEWS = ('unsup_partner_teacher', 'unsup_partner_student')


def has_partners(inputs: Dict[str, Tensor], views: Sequence[str]) -> bool:
    """Tell whether a batch brings the partners of mixing.

    Args:
        inputs (dict[str, Tensor]): Images by view.
        views (Sequence[str]): Views of the partners that the method needs.

    Returns:
        bool: Whether all are there, as many as unlabelled images.

    Raises:
        ValueError: If only some are there, or their number differs.
    """
    missing = [view for view in views if view not in inputs]
    if len(missing) == len(views):
        return False
    if missing:
        raise ValueError(f'The batch has views of partners, but lacks '
                         f'{missing}; it has {sorted(inputs)}. Check '
                         'branch_field of mmsemi.MultiBranch.')
    num = len(inputs['unsup_teacher'])
    for view in views:
        if len(inputs[view]) != num:
            raise ValueError(
                f'The batch has {num} unlabelled images and '
                f'{len(inputs[view])} partners; give both sources the same '
                'share in source_ratio of mmsemi.MultiSourceSampler.')
    return True


def build_mix(mix: Optional[dict]) -> Optional[BatchMix]:
    """Build what mixes the images of a batch.

    Args:
        mix (dict, optional): Config of a :class:`BatchMix`.

    Raises:
        TypeError: If it is something else.
    """
    if mix is None or isinstance(mix, BatchMix):
        return mix
    built = TRANSFORMS.build(mix)
    if not isinstance(built, BatchMix):
        raise TypeError(f'mix is a {type(built).__name__}, which mixes no '
                        'batches; see mmsemi.datasets.transforms.mix.')
    return built


def apply_mix(
    plan: Optional[MixPlan],
    images: Tensor,
    targets: DenseTargets,
    other_images: Optional[Tensor] = None,
    other_targets: Optional[DenseTargets] = None
) -> Tuple[Tensor, DenseTargets]:
    """Mix images and targets by one plan; None leaves them as they are."""
    if plan is None:
        return images, targets
    return (plan.mix(images, other_images),
            plan.mix_targets(targets, other_targets))


def hidden_labels(data_samples: Sequence[SegDataSample]) -> Tensor:
    """Stack the masks of unlabelled images, (N, H, W) int64."""
    if not all('gt_sem_seg' in sample for sample in data_samples):
        raise ValueError(
            'The unlabelled view carries no hidden masks to measure against; '
            'load annotations in the unlabelled pipeline or set '
            'hidden_label_interval=0.')
    return torch.stack([s.gt_sem_seg.data.squeeze(0) for s in data_samples])


def check_same_geometry(inputs: Dict[str, Tensor],
                        data_samples: Dict[str, list], view: str) -> None:
    """Raise ValueError if a view shows other pixels than the weak view.

    The sentences of referring segmentation must be equal, too.

    Args:
        inputs (dict[str, Tensor]): All views of the batch.
        data_samples (dict[str, list]): Their data samples, with
            ``homography_matrix`` where it was packed.
        view (str): The strong view.
    """
    weak = 'unsup_teacher'
    same = inputs[weak].shape == inputs[view].shape and all(
        tuple(a.img_shape[:2]) == tuple(b.img_shape[:2])
        and np.allclose(
            a.get('homography_matrix', np.eye(3)),
            b.get('homography_matrix', np.eye(3)),
            atol=1e-4)
        for a, b in zip(data_samples[weak], data_samples[view]))
    if not same:
        raise ValueError(
            f'The views {weak!r} and {view!r} differ in their geometry, so '
            'pseudo-labels would land on the wrong pixels. Place flips, '
            'crops and resizing before mmsemi.MultiBranch, where the views '
            'share them.')
    for a, b in zip(data_samples[weak], data_samples[view]):
        if a.get('text') != b.get('text'):
            raise ValueError(
                f'The views {weak!r} and {view!r} of an image have the '
                f'sentences {a.get("text")!r} and {b.get("text")!r}, so '
                'pseudo-labels would show something else than is asked for. '
                'Draw the sentence before mmsemi.MultiBranch.')
