# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Pseudo-masks replaced by the mask proposals that fit them.

D. Yang et al., SAM as the Guide: Mastering Pseudo-Label Refinement in
Semi-Supervised Referring Expression Segmentation (SemiRES),
ICML 2024 (arXiv 2406.01451), section 3.3.2. With c a pseudo-mask and m a
proposal, the IoU decides (equation 6), the coverage |c & m| / |c| (equation
7) or the purity |c & m| / |m| (equation 8). Labels in figure 5 of the paper
have the last two swapped; the released code agrees with the equations.
"""
from typing import Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from mmsemi.structures.packed_masks import PackedMasks, count_pixels
from .instance_filters import check_unit_interval

STRATEGIES = ('iom', 'cpi', 'cpi_u', 'cpi_o')


def match_proposals(
        pseudo: Tensor,
        proposals: Union[Tensor, PackedMasks],
        strategy: str,
        iou_thr: float = 0.5,
        coverage_thr: float = 0.7,
        purity_thr: float = 0.7,
        max_area_ratio: Optional[float] = None,
        max_image_share: Optional[float] = None,
        min_coverage: Optional[float] = None,
        min_iou: Optional[float] = None) -> Tuple[Tensor, Tensor]:
    """Replace one pseudo-mask by what proposals make of it.

    Args:
        pseudo (Tensor): (H, W), bool or integers with 0 for background.
        proposals (Tensor or PackedMasks): (N, H, W) bool; N may be 0.
        strategy (str): See :func:`match_proposals_batch`, as for all that
            follow.
        iou_thr (float): Defaults to 0.5.
        coverage_thr (float): Defaults to 0.7.
        purity_thr (float): Defaults to 0.7.
        max_area_ratio (float, optional): Defaults to None.
        max_image_share (float, optional): Defaults to None.
        min_coverage (float, optional): Defaults to None.
        min_iou (float, optional): Defaults to None.

    Returns:
        tuple[Tensor, Tensor]: The mask (H, W) bool and whether there was a
        match, a bool scalar. Without one the mask is ``pseudo``.

    Raises:
        ValueError: See :func:`match_proposals_batch`.
    """
    masks, matched = match_proposals_batch(
        pseudo[None], proposals, strategy, iou_thr, coverage_thr, purity_thr,
        max_area_ratio, max_image_share, min_coverage, min_iou)
    return masks[0], matched[0]


def match_proposals_batch(
        pseudos: Tensor,
        proposals: Union[Tensor, PackedMasks],
        strategy: str,
        iou_thr: float = 0.5,
        coverage_thr: float = 0.7,
        purity_thr: float = 0.7,
        max_area_ratio: Optional[float] = None,
        max_image_share: Optional[float] = None,
        min_coverage: Optional[float] = None,
        min_iou: Optional[float] = None) -> Tuple[Tensor, Tensor]:
    """Replace the pseudo-masks of one image by what proposals make of them.

    The union of what is selected replaces a pseudo-mask, as in the paper: a
    small part of the object shrinks it under 'cpi' and 'cpi_o', and a
    proposal of the whole image swallows it under 'cpi' and 'cpi_u'. The four
    guards, which the paper does not have, are off by default; on data where
    that happens, ``max_area_ratio=4``, ``max_image_share=0.9`` and
    ``min_coverage=0.5`` are a good start.

    Args:
        pseudos (Tensor): (K, H, W), bool or integers with 0 for background;
            K may be 0.
        proposals (Tensor or PackedMasks): (N, H, W), bool; N may be 0. Packed
            ones are faster.
        strategy (str): See :func:`select_proposals`, as for all arguments up
            to ``max_image_share``.
        iou_thr (float): Defaults to 0.5.
        coverage_thr (float): Defaults to 0.7.
        purity_thr (float): Defaults to 0.7.
        max_area_ratio (float, optional): Defaults to None.
        max_image_share (float, optional): Defaults to None.
        min_coverage (float, optional): Least share of the pseudo-mask's
            pixels that the result must have, else there is no match.
            Defaults to None: any.
        min_iou (float, optional): Least IoU of pseudo-mask and result, else
            there is no match. Defaults to None: any.

    Returns:
        tuple[Tensor, Tensor]: Masks (K, H, W) bool and whether there was a
        match, (K,) bool. Without one the mask is the pseudo-mask.

    Raises:
        ValueError: If shapes, types or arguments are not as above.
    """
    check_matching(strategy, iou_thr, coverage_thr, purity_thr,
                   max_area_ratio, max_image_share, min_coverage, min_iou)
    pseudos, proposals = _checked(pseudos, proposals)
    selected = _select(pseudos, proposals, strategy, iou_thr, coverage_thr,
                       purity_thr, max_area_ratio, max_image_share)
    matched = selected.any(1)
    refined = proposals.union(torch.from_numpy(selected))
    if min_coverage is not None or min_iou is not None:
        shared, own, area = (
            count_pixels(masks).cpu().numpy()
            for masks in (refined & pseudos, pseudos, refined))
        if min_coverage is not None:
            matched &= shared / np.maximum(own, 1) >= min_coverage
        if min_iou is not None:
            union = np.maximum(own + area - shared, 1)
            matched &= shared / union >= min_iou
    for k in np.flatnonzero(~matched).tolist():
        refined[k] = pseudos[k]
    return refined, torch.from_numpy(matched).to(pseudos.device)


def select_proposals(pseudos: Tensor,
                     proposals: Union[Tensor, PackedMasks],
                     strategy: str,
                     iou_thr: float = 0.5,
                     coverage_thr: float = 0.7,
                     purity_thr: float = 0.7,
                     max_area_ratio: Optional[float] = None,
                     max_image_share: Optional[float] = None) -> Tensor:
    """Select the proposals whose union replaces a pseudo-mask.

    A threshold must be exceeded: what equals it is not selected. An empty
    pseudo-mask selects nothing, and an empty proposal is never selected.

    Args:
        pseudos (Tensor): (K, H, W), bool or integers with 0 for background.
        proposals (Tensor or PackedMasks): (N, H, W), bool.
        strategy (str): 'iom': the one of highest IoU, the first of equals;
            'cpi_u': all that cover the pseudo-mask, which is as the paper's
            main table has it; 'cpi_o': all that lie in it; 'cpi': both.
        iou_thr (float): For 'iom', in [0, 1]. Defaults to 0.5.
        coverage_thr (float): For 'cpi' and 'cpi_u', in [0, 1]. Defaults to
            0.7.
        purity_thr (float): For 'cpi' and 'cpi_o', in [0, 1]. Defaults to
            0.7.
        max_area_ratio (float, optional): Leave out proposals of more than so
            many times the pixels of the pseudo-mask. Defaults to None: none.
        max_image_share (float, optional): Leave out proposals of more than
            this share of the image, in [0, 1]. Defaults to None: none.

    Returns:
        Tensor: (K, N) bool.

    Raises:
        ValueError: If shapes, types or arguments are not as above.
    """
    check_matching(strategy, iou_thr, coverage_thr, purity_thr,
                   max_area_ratio, max_image_share)
    pseudos, proposals = _checked(pseudos, proposals)
    selected = _select(pseudos, proposals, strategy, iou_thr, coverage_thr,
                       purity_thr, max_area_ratio, max_image_share)
    return torch.from_numpy(selected).to(pseudos.device)


def _select(pseudos: Tensor, proposals: PackedMasks, strategy: str,
            iou_thr: float, coverage_thr: float, purity_thr: float,
            max_area_ratio: Optional[float],
            max_image_share: Optional[float]) -> np.ndarray:
    """Select on the host, where so few numbers are fastest."""
    if pseudos.numel() == 0 or len(proposals) == 0:
        return np.zeros((len(pseudos), len(proposals)), dtype=bool)
    own = count_pixels(pseudos).cpu().numpy()[:, None]
    area = proposals.area().cpu().numpy()

    def ratio(shared: np.ndarray, whole: np.ndarray) -> np.ndarray:
        # Exact, so that a quotient equal to a threshold does not exceed it.
        return shared / np.maximum(whole, 1)

    def exceeds(shared: np.ndarray) -> np.ndarray:
        if strategy == 'iom':
            return ratio(shared, own + area - shared) > iou_thr
        if strategy == 'cpi_o':
            return ratio(shared, area) > purity_thr
        covers = ratio(shared, own) > coverage_thr
        if strategy == 'cpi_u':
            return covers
        return covers | (ratio(shared, area) > purity_thr)

    # Every score grows with the shared pixels, so that a bound of these
    # tells which pairs need not be looked at.
    bound = proposals.most_shared(pseudos).cpu().numpy()
    pairs = exceeds(np.minimum(bound, own))
    if max_area_ratio is not None:
        pairs &= area <= max_area_ratio * own
    if max_image_share is not None:
        height, width = pseudos.shape[1:]
        pairs &= area <= max_image_share * height * width
    shared = proposals.intersection(
        pseudos, torch.from_numpy(pairs).to(pseudos.device)).cpu().numpy()
    selected = pairs & exceeds(shared)
    if strategy == 'iom':
        iou = np.where(selected, ratio(shared, own + area - shared), 0.)
        selected &= iou.argmax(1)[:, None] == np.arange(len(proposals))
    return selected


def check_matching(strategy: str,
                   iou_thr: float = 0.5,
                   coverage_thr: float = 0.7,
                   purity_thr: float = 0.7,
                   max_area_ratio: Optional[float] = None,
                   max_image_share: Optional[float] = None,
                   min_coverage: Optional[float] = None,
                   min_iou: Optional[float] = None,
                   owner: str = 'match_proposals') -> None:
    """Raise ValueError if an argument of the matching is out of range.

    Args:
        strategy (str): See :func:`match_proposals_batch`, as for all others.
        owner (str): Whose arguments these are, for the message. Defaults to
            'match_proposals'.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f'{owner}.strategy={strategy!r}; allowed are '
                         f'{STRATEGIES}.')
    shares = dict(
        iou_thr=iou_thr,
        coverage_thr=coverage_thr,
        purity_thr=purity_thr,
        max_image_share=max_image_share,
        min_coverage=min_coverage,
        min_iou=min_iou)
    for name, value in shares.items():
        if value is not None:
            check_unit_interval(value, f'{owner}.{name}')
    if max_area_ratio is not None and not max_area_ratio > 0:
        raise ValueError(f'{owner}.max_area_ratio={max_area_ratio!r}; '
                         'allowed are numbers above 0 and None.')


def _checked(
        pseudos: Tensor, proposals: Union[Tensor, PackedMasks]
) -> Tuple[Tensor, PackedMasks]:
    if pseudos.dim() != 3 or pseudos.is_floating_point():
        raise ValueError('Pseudo-masks must be bool or integers of shape (K, '
                         f'H, W), got {pseudos.dtype} of '
                         f'{tuple(pseudos.shape)}.')
    if pseudos.dtype != torch.bool:
        pseudos = pseudos != 0
    if not isinstance(proposals, PackedMasks):
        proposals = PackedMasks.from_bool(proposals)
    if tuple(proposals.shape[1:]) != tuple(pseudos.shape[1:]):
        raise ValueError(
            f'Pseudo-masks have {tuple(pseudos.shape[1:])} pixels, proposals '
            f'{tuple(proposals.shape[1:])}; both must be of the same view.')
    return pseudos, proposals
