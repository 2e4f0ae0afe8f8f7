# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Mixing the images of a batch: CutMix in its three published forms, ClassMix.

The published procedures share a name and differ in number, size and
probability of the boxes, so each is a class of its own. All draw from the
global generators of Python and NumPy, on the host.

S. Yun et al., CutMix, ICCV 2019. G. French et al., Semi-supervised semantic
segmentation needs strong, varied perturbations, BMVC 2020. V. Olsson et al.,
ClassMix, WACV 2021.
"""
import random
from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from typing import Any, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from mmsemi.registry import TRANSFORMS
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL, DenseTargets

PARTNERS = ('independent', 'batch_roll', 'batch_flip')
# Boxes that are drawn before one is made to fit.
MAX_TRIES = 1000


def cutmix_box(
    size: Union[int, Tuple[int, int]],
    prob: float = 0.5,
    area_range: Tuple[float, float] = (0.02, 0.4),
    aspect_range: Tuple[float, float] = (0.3, 1 / 0.3)
) -> Optional[Tuple[int, int, int, int]]:
    """Draw one box as UniMatch does.

    The area is uniform in ``area_range`` of the image, width / height the
    inverse of a number uniform in ``aspect_range``. Boxes that do not lie in
    the image are drawn anew, with the same area. One number comes from
    ``random``, then sizes and places from ``np.random``. In images where
    1,000 boxes do not fit, very narrow ones, the last one's shape is clipped
    to what fits.

    Args:
        size (int or tuple[int, int]): Side of a square image, or height and
            width, in pixels.
        prob (float): Probability of a box. Defaults to 0.5.
        area_range (tuple[float, float]): Share of the image. Defaults to
            (0.02, 0.4).
        aspect_range (tuple[float, float]): Height / width. Defaults to
            (0.3, 1 / 0.3).

    Returns:
        tuple[int, int, int, int] or None: x, y, width and height in pixels;
        None for no box.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if random.random() > prob:
        return None
    area = np.random.uniform(*area_range) * height * width
    for _ in range(MAX_TRIES):
        ratio = np.random.uniform(*aspect_range)
        w, h = int(np.sqrt(area / ratio)), int(np.sqrt(area * ratio))
        x, y = np.random.randint(0, width), np.random.randint(0, height)
        if x + w <= width and y + h <= height:
            return x, y, w, h
    w = min(max(w, int(area / height), 1), width)
    h = min(int(area / w), height)
    x, y = (np.random.randint(0, width - w + 1),
            np.random.randint(0, height - h + 1))
    return x, y, w, h


def box_mask(num_masks: int,
             size: Tuple[int, int],
             num_boxes: int = 3,
             area_range: Tuple[float, float] = (0.25, 0.5),
             rng: Any = np.random) -> np.ndarray:
    """Draw masks of several boxes as CPS and French et al. do.

    Each box has a share p uniform in ``area_range`` of the image, divided by
    the number of boxes; its relative height is p to the power of a uniform
    number. What lies in an odd number of boxes is marked.

    Args:
        num_masks (int): Number of masks.
        size (tuple[int, int]): Height and width in pixels.
        num_boxes (int): Boxes per mask. Defaults to 3, as CPS; French et al.
            take 1.
        area_range (tuple[float, float]): Share of a box. Defaults to
            (0.25, 0.5), as CPS; French et al. take (0.5, 0.5).
        rng (np.random or np.random.RandomState): Source of the numbers:
            shares, shapes and places of all boxes, in this order. Defaults
            to the global one.

    Returns:
        np.ndarray: (num_masks, H, W) bool.
    """
    shares = rng.uniform(*area_range, size=(num_masks, num_boxes))
    heights = shares**rng.uniform(0., 1., size=(num_masks, num_boxes))
    widths = shares / np.where(heights == 0, 1, heights)
    relative = np.stack([heights, widths], axis=2) / np.sqrt(num_boxes)
    extents = np.round(relative * np.array(size))
    places = np.round((np.array(size) - extents) *
                      rng.uniform(0., 1., size=extents.shape))
    masks = np.zeros((num_masks, *size), dtype=bool)
    for mask, starts, sizes in zip(masks, places.astype(int),
                                   extents.astype(int)):
        for (y, x), (h, w) in zip(starts, sizes):
            mask[y:y + h, x:x + w] ^= True
    return masks


def class_mask(label: Tensor,
               classes: Optional[Sequence[int]] = None,
               ignore_index: int = IGNORE_LABEL) -> Tensor:
    """Mark the pixels of half of an image's classes (ClassMix).

    Args:
        label (Tensor): (H, W) int64.
        classes (Sequence[int], optional): Classes to mark. Defaults to None:
            half (rounded down) of those in ``label``, drawn at random.
        ignore_index (int): Never marked. Defaults to 255.

    Returns:
        Tensor: (H, W) bool.
    """
    if classes is None:
        found = label.unique().cpu().numpy()
        found = found[found != ignore_index]
        classes = np.random.choice(found, len(found) // 2, replace=False)
    chosen = torch.as_tensor(
        np.asarray(classes, dtype=np.int64), device=label.device)
    return torch.isin(label, chosen)


@dataclass
class MixPlan:
    """Which pixels of each image come from which other image.

    Args:
        take (Tensor): (N, H, W) bool, True where the partner's pixel is
            taken.
        partner (Tensor): (N,) int64, index of the partner.
    """

    take: Tensor
    partner: Tensor

    def mix(self, values: Tensor, others: Optional[Tensor] = None) -> Tensor:
        """Mix images, labels or anything else of every pixel.

        Args:
            values (Tensor): (N, H, W) or (N, C, H, W).
            others (Tensor, optional): Where ``partner`` points to, (M, ...).
                Defaults to None: ``values``.

        Returns:
            Tensor: Mixed, of the shape of ``values``.
        """
        take = self.take if values.dim() == 3 else self.take[:, None]
        others = values if others is None else others
        return torch.where(take, others[self.partner], values)

    def mix_targets(self,
                    targets: DenseTargets,
                    others: Optional[DenseTargets] = None) -> DenseTargets:
        """Mix all fields of pseudo-labels.

        What is mixed of two images is ``matched`` where both are.

        Args:
            targets (DenseTargets): Of the batch.
            others (DenseTargets, optional): Of the partners. Defaults to
                None: ``targets``.

        Returns:
            DenseTargets: Mixed.
        """
        others = targets if others is None else others
        fields = {
            name: None if value is None else self.mix(value,
                                                      getattr(others, name))
            for name, value in vars(targets).items() if name != 'matched'
        }
        matched = targets.matched
        if matched is not None:
            matched = matched & others.matched[self.partner]
        return DenseTargets(**fields, matched=matched)


class BatchMix(metaclass=ABCMeta):
    """Mixes every image of a batch with another one of it.

    Args:
        partner (str): Who the other one is: 'independent' draws a random
            order without fixed points for every mix, so that strong views
            of an image have different partners; 'batch_roll' is the next
            image (U2PL, ClassMix); 'batch_flip' is the batch in reverse
            order (UniMatch V2), where the middle image of an odd batch is
            mixed with itself. Defaults to 'independent'. Partners from
            outside of the batch, such as another crop of the same image
            (what UniMatch V1's released code does), are data: see
            ``mmsemi.SemiSemanticSegmentor``.

    Raises:
        ValueError: If ``partner`` is unknown.
    """

    def __init__(self, partner: str = 'independent') -> None:
        if partner not in PARTNERS:
            raise ValueError(f'{type(self).__name__}.partner={partner!r}; '
                             f'allowed are {PARTNERS}.')
        self.partner = partner

    def plan(self, targets: DenseTargets,
             partner: Optional[Tensor] = None) -> Optional[MixPlan]:
        """Draw what is mixed.

        Args:
            targets (DenseTargets): Of the batch.
            partner (Tensor, optional): (N,) int64, if it is not to be
                chosen. Defaults to None.

        Returns:
            MixPlan or None: None to leave the batch as it is: by chance, or
            because a batch of one image has no partner.
        """
        num = len(targets.label)
        if partner is None:
            if num < 2:
                return None
            partner = self._partners(num).to(targets.label.device)
        take = self._take(targets)
        return None if take is None else MixPlan(take, partner)

    def _partners(self, num: int) -> Tensor:
        index = torch.arange(num)
        if self.partner == 'batch_roll':
            return index.roll(-1)
        if self.partner == 'batch_flip':
            return index.flip(0)
        # Each image is followed by its partner on one random circle.
        order = torch.from_numpy(np.random.permutation(num))
        partner = torch.empty_like(index)
        partner[order] = order.roll(-1)
        return partner

    @abstractmethod
    def _take(self, targets: DenseTargets) -> Optional[Tensor]:
        """Draw the pixels to take, (N, H, W) bool."""


def _check_range(name: str, values: Tuple[float, float]) -> tuple:
    low, high = values
    if not 0 < low <= high <= 1:
        raise ValueError(f'{name}={values!r}; allowed are two numbers, '
                         '0 < low <= high <= 1.')
    return float(low), float(high)


def _check_prob(name: str, prob: float) -> float:
    if not 0 <= prob <= 1:
        raise ValueError(f'{name}={prob!r}; allowed are numbers from 0 to 1.')
    return float(prob)


@TRANSFORMS.register_module()
class CutMix(BatchMix):
    """One box per image, present with a probability (UniMatch).

    Args:
        prob (float): Probability of a box in an image. Defaults to 0.5.
        area_range (tuple[float, float]): Share of the image. Defaults to
            (0.02, 0.4).
        partner (str): See :class:`BatchMix`. Defaults to 'independent'.
    """

    def __init__(self,
                 prob: float = 0.5,
                 area_range: Tuple[float, float] = (0.02, 0.4),
                 partner: str = 'independent') -> None:
        super().__init__(partner)
        self.prob = _check_prob('CutMix.prob', prob)
        self.area_range = _check_range('CutMix.area_range', area_range)

    def _take(self, targets: DenseTargets) -> Tensor:
        take = torch.zeros(targets.label.shape, dtype=torch.bool)
        for mask in take:
            box = cutmix_box(
                tuple(mask.shape), self.prob, self.area_range)
            if box is not None:
                x, y, w, h = box
                mask[y:y + h, x:x + w] = True
        return take.to(targets.label.device)


@TRANSFORMS.register_module()
class BoxMix(BatchMix):
    """Several boxes per image, always there (CPS; French et al.).

    Args:
        num_boxes (int): Boxes per image; where an even number overlaps
            nothing is taken. Defaults to 3, as CPS; French et al. take 1.
        area_range (tuple[float, float]): Share of a box. Defaults to
            (0.25, 0.5), as CPS; French et al. take (0.5, 0.5).
        partner (str): See :class:`BatchMix`. Defaults to 'independent'.
    """

    def __init__(self,
                 num_boxes: int = 3,
                 area_range: Tuple[float, float] = (0.25, 0.5),
                 partner: str = 'independent') -> None:
        super().__init__(partner)
        if not isinstance(num_boxes, int) or num_boxes < 1:
            raise ValueError(f'BoxMix.num_boxes={num_boxes!r}; allowed are '
                             'whole numbers from 1.')
        self.num_boxes = num_boxes
        self.area_range = _check_range('BoxMix.area_range', area_range)

    def _take(self, targets: DenseTargets) -> Tensor:
        num, *size = targets.label.shape
        take = box_mask(num, tuple(size), self.num_boxes, self.area_range)
        return torch.from_numpy(take).to(targets.label.device)


@TRANSFORMS.register_module()
class HalfBoxMix(BatchMix):
    """One box of half the image, for the whole batch or none of it (U2PL).

    The width is a whole number from half the image's plus 1 to all but one
    pixel of it; the height makes the area half of the image's.

    Args:
        prob (float): Probability that the batch is mixed. Defaults to 0.5.
        partner (str): See :class:`BatchMix`. Defaults to 'batch_roll'.
    """

    def __init__(self,
                 prob: float = 0.5,
                 partner: str = 'batch_roll') -> None:
        super().__init__(partner)
        self.prob = _check_prob('HalfBoxMix.prob', prob)

    def _take(self, targets: DenseTargets) -> Optional[Tensor]:
        if np.random.uniform() > self.prob:
            return None
        take = torch.zeros(targets.label.shape, dtype=torch.bool)
        height, width = take.shape[1:]
        for mask in take:
            smallest = min(width // 2 + 1, width)
            w = np.random.randint(smallest, max(width, smallest + 1))
            h = min(round(height * width / 2 / w), height)
            x = np.random.randint(0, width - w + 1)
            y = np.random.randint(0, height - h + 1)
            mask[y:y + h, x:x + w] = True
        return take.to(targets.label.device)


@TRANSFORMS.register_module()
class ClassMix(BatchMix):
    """Keep half of an image's classes, take the rest from the partner.

    Classes on padding do not count, and padding is not kept.

    Args:
        partner (str): See :class:`BatchMix`. Defaults to 'batch_roll', as
            published.
    """

    def __init__(self, partner: str = 'batch_roll') -> None:
        super().__init__(partner)

    def _take(self, targets: DenseTargets) -> Tensor:
        known = targets.label.where(targets.valid, IGNORE_LABEL)
        return ~torch.stack([class_mask(label) for label in known])
