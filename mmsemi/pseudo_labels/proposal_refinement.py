# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A stage that lets mask proposals redraw pseudo-labels."""
from typing import List, Optional, Tuple

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from mmsemi.registry import TRANSFORMS
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL, DensePseudoLabel
from mmsemi.structures.packed_masks import PackedMasks, count_pixels
from mmsemi.structures.view_geometry import masks_to_boxes
from .class_pieces import number_pieces, piece_masks
from .pipeline import PseudoLabelStage
from .proposal_matching import check_matching, match_proposals_batch
from .stage_samples import PROPOSALS

OVERLAPS = ('purity', 'soft_purity')
# Masks handled at a time; bounds the memory of label maps in many pieces.
_MASKS_AT_A_TIME = 16


@TRANSFORMS.register_module()
class RefineByProposals(PseudoLabelStage):
    """Replace pseudo-masks by the mask proposals that fit them.

    What no proposal fits stays as it is, and ``matched`` says which is
    which. The proposals come from :class:`mmsemi.LoadMaskProposals` in the
    pipeline of the teacher's view.

    D. Yang et al., SemiRES, ICML 2024 (arXiv 2406.01451), section 3.3.2, for
    one referred object per image, and the same rule for label maps of
    several classes and for instances. The defaults are the paper's main
    table. The guards are not in the paper; see
    :func:`match_proposals_batch`, which also says what to set them to.

    *Instances*: every mask is refined, and the box of a matched one becomes
    that of its new mask. ``matched`` is (N,) bool.

    *Label maps of two classes with a background*: the pixels of the other
    class are one mask. ``matched`` is a bool scalar.

    *Other label maps*: every connected piece of every class but
    ``background`` is a mask. A pixel that several results claim goes to the
    one of highest purity, and a result that matched takes it from a piece
    that did not. What a replaced piece leaves to nobody becomes background.
    ``matched`` is (C,) bool: whether the image has pieces of the class and
    all of them were matched.

    For the log there are ``match_rate``, the matched share of the
    pseudo-masks of a batch, and ``refined_area_ratio``, the mean of pixels
    after by pixels before, which is 1 without a match.

    In label maps padding and pixels of no known label (255) stay. Pixels
    whose label changes get the mean confidence of the mask that was
    replaced; ``prob`` stays the teacher's.

    Args:
        strategy (str): 'iom', 'cpi', 'cpi_u' or 'cpi_o', see
            :func:`select_proposals`. Defaults to 'cpi_u'.
        iou_thr (float): For 'iom', in [0, 1]. Defaults to 0.5.
        coverage_thr (float): For 'cpi' and 'cpi_u', in [0, 1]. Defaults to
            0.7.
        purity_thr (float): For 'cpi' and 'cpi_o', in [0, 1]. Defaults to
            0.7.
        max_area_ratio (float, optional): Leave out proposals of more than so
            many times the pixels of the pseudo-mask. Defaults to None: none.
        max_image_share (float, optional): Leave out proposals of more than
            this share of the image. Defaults to None: none.
        min_coverage (float, optional): No match if the result has less than
            this share of the pseudo-mask. Defaults to None.
        min_iou (float, optional): No match if the result has a lower IoU
            with the pseudo-mask. Defaults to None.
        num_classes (int): Of label maps, background included. Defaults to 2.
        background (int, optional): Class of label maps that is no object.
            Defaults to 0. None: there is none; what a replaced piece leaves
            is then not learned from (label 255, weight 0).
        by_piece (bool, optional): Whether the connected pieces of a class
            are refined one by one. Defaults to None: unless there are two
            classes with a background.
        min_area (int): Pieces of fewer pixels stay as they are. Defaults to
            1: none.
        overlap (str): 'purity': share of the result that was the replaced
            piece; 'soft_purity': mean probability of its class in the
            result. Defaults to 'purity'.

    Raises:
        ValueError: If an argument is out of range.
    """

    requires_any = (('label', 'confidence', 'weight', 'valid'), ('masks',
                                                                 'bboxes'))
    writes = ('matched', )

    def __init__(self,
                 strategy: str = 'cpi_u',
                 iou_thr: float = 0.5,
                 coverage_thr: float = 0.7,
                 purity_thr: float = 0.7,
                 max_area_ratio: Optional[float] = None,
                 max_image_share: Optional[float] = None,
                 min_coverage: Optional[float] = None,
                 min_iou: Optional[float] = None,
                 num_classes: int = 2,
                 background: Optional[int] = 0,
                 by_piece: Optional[bool] = None,
                 min_area: int = 1,
                 overlap: str = 'purity') -> None:
        super().__init__()
        self.matching = dict(
            strategy=strategy,
            iou_thr=iou_thr,
            coverage_thr=coverage_thr,
            purity_thr=purity_thr,
            max_area_ratio=max_area_ratio,
            max_image_share=max_image_share,
            min_coverage=min_coverage,
            min_iou=min_iou)
        name = type(self).__name__
        check_matching(**self.matching, owner=name)
        if not isinstance(num_classes, int) or not 2 <= num_classes <= 255:
            raise ValueError(f'{name}.num_classes={num_classes!r}; allowed '
                             'are whole numbers from 2 to 255.')
        if background is not None and background not in range(num_classes):
            raise ValueError(f'{name}.background={background!r}; allowed are '
                             f'None and classes from 0 to {num_classes - 1}.')
        if not isinstance(min_area, int) or min_area < 1:
            raise ValueError(f'{name}.min_area={min_area!r}; allowed are '
                             'whole numbers from 1, in pixels.')
        if overlap not in OVERLAPS:
            raise ValueError(f'{name}.overlap={overlap!r}; allowed are '
                             f'{OVERLAPS}.')
        self.num_classes = num_classes
        self.background = background
        self.one_object = num_classes == 2 and background is not None
        self.by_piece = not self.one_object if by_piece is None else by_piece
        self.min_area = min_area
        self.overlap = overlap
        if overlap == 'soft_purity':
            self.requires = ('prob', )

    @torch.no_grad()
    def forward(
            self, pseudo_labels: List[BaseDataElement],
            data_samples: List[BaseDataElement]) -> List[BaseDataElement]:
        """Refine a batch; see :class:`PseudoLabelStage`.

        Raises:
            ValueError: If a data sample carries no proposals, or such of
                another size.
        """
        self._fared: List[Tuple[Tensor, Tensor]] = []
        refined = [
            self._refine_map(label, sample) if isinstance(
                label, DensePseudoLabel) else self._refine_instances(
                    label, sample)
            for label, sample in zip(pseudo_labels, data_samples)
        ]
        self.figures = {}
        if self._fared:
            matched, growth = (torch.cat(part) for part in zip(*self._fared))
            self.figures = dict(
                match_rate=matched.double().mean(),
                refined_area_ratio=growth.mean())
        return refined

    def _match(self, masks: Tensor,
               sample: BaseDataElement) -> Tuple[Tensor, Tensor]:
        """Refine masks (K, H, W) and note how they fared."""
        proposals = self._proposals(masks, sample)
        matching = dict(self.matching)
        if matching['max_image_share'] is not None:
            # Of the image, not of the padding.
            height, width = sample.img_shape[:2]
            padded = max(masks.shape[1] * masks.shape[2], 1)
            matching['max_image_share'] *= min(height * width / padded, 1.)
        refined, matched = match_proposals_batch(masks, proposals, **matching)
        if len(masks):
            growth = count_pixels(refined).double() / count_pixels(
                masks).clamp(min=1)
            self._fared.append((matched, growth.where(matched, 1.)))
        return refined, matched

    def _proposals(self, masks: Tensor,
                   sample: BaseDataElement) -> PackedMasks:
        if PROPOSALS not in sample:
            raise ValueError(
                f'{type(self).__name__} needs mask proposals, but the '
                f'teacher\'s view of {sample.get("img_path", "an image")} '
                "carries none. Put dict(type='mmsemi.LoadMaskProposals', "
                "store=...) behind the geometry of the 'unsup_teacher' "
                'pipeline, and pack with mmsemi.PackSegInputs or '
                'mmsemi.PackDetInputs.')
        proposals = sample.get(PROPOSALS).to(masks.device)
        shape = tuple(masks.shape[1:])
        if tuple(proposals.shape[1:]) == tuple(sample.img_shape[:2]):
            proposals = proposals.pad_to(*shape)
        if tuple(proposals.shape[1:]) != shape:
            raise ValueError(
                f'The mask proposals of {sample.get("img_path", "an image")} '
                f'have the size {tuple(proposals.shape[1:])}, but its '
                f'pseudo-labels {shape} (height, width). Load them behind '
                'all geometry of the view.')
        return proposals

    def _refine_instances(self, label: InstanceData,
                          sample: BaseDataElement) -> InstanceData:
        masks, matched = self._match(label.masks.bool(), sample)
        boxes = masks_to_boxes(masks).to(label.bboxes)
        label = label.new()
        label.bboxes = boxes.where(matched[:, None], label.bboxes)
        label.masks = masks
        label.matched = matched
        return label

    def _refine_map(self, label: DensePseudoLabel,
                    sample: BaseDataElement) -> DensePseudoLabel:
        known = label.valid & (label.label != IGNORE_LABEL)
        before = label.label.where(known, IGNORE_LABEL)
        pieces, classes = self.pieces(before)
        after, confidence = before.clone(), label.confidence.clone()
        claim = torch.full_like(label.confidence, -1.)
        flags = [True] * len(classes)
        for first in range(0, len(classes), _MASKS_AT_A_TIME):
            index = range(first, min(first + _MASKS_AT_A_TIME, len(classes)))
            masks = piece_masks(pieces, torch.tensor(index))
            refined, matched = self._match(masks, sample)
            refined &= known
            for k, found in zip(index, matched.tolist()):
                flags[k] = found
                if not found:
                    continue
                old, new = masks[k - first], refined[k - first]
                sure = label.confidence[old].mean()
                # Nobody has claimed these yet, maybe somebody will.
                free = old & (claim < 0)
                after[free] = IGNORE_LABEL if self.background is None \
                    else self.background
                confidence[free] = sure
                score = self._claim(label, classes[k], old, new)
                won = new & (claim < score)
                claim[won] = score
                after[won] = classes[k]
                confidence[won] = sure
        return self._changed(label, known, after, confidence,
                             self._flags(classes, flags, known.device))

    def _claim(self, label: DensePseudoLabel, c: int, old: Tensor,
               new: Tensor) -> Tensor:
        """Return how much a result is worth its pixels, a scalar."""
        share = label.prob[c] if self.overlap == 'soft_purity' else old
        return share[new].to(label.confidence).mean().nan_to_num()

    def _flags(self, classes: List[int], matched: List[bool],
               device: torch.device) -> Tensor:
        if self.one_object:
            return torch.tensor(
                bool(matched) and all(matched), device=device)
        flags = torch.zeros(self.num_classes, dtype=torch.bool)
        for c in set(classes):
            flags[c] = all(m for own, m in zip(classes, matched) if own == c)
        return flags.to(device)

    def _changed(self, label: DensePseudoLabel, known: Tensor, after: Tensor,
                 confidence: Tensor, matched: Tensor) -> DensePseudoLabel:
        changed = known & (after != label.label)
        lost = known & (after == IGNORE_LABEL)
        label = label.new()
        label.label = after.where(known, label.label)
        label.confidence = confidence.where(changed, label.confidence)
        label.confidence = label.confidence.masked_fill(lost, 0.)
        label.weight = label.weight.masked_fill(lost, 0.)
        label.matched = matched
        return label

    def pieces(self, label: Tensor) -> Tuple[Tensor, List[int]]:
        """Number what is refined.

        Args:
            label (Tensor): (H, W) int64, 255 where nothing is.

        Returns:
            tuple[Tensor, list[int]]: (H, W) int64, -1 where nothing is, else
            an index into the classes, which come second.

        Raises:
            ValueError: If there are more classes than ``num_classes``.
        """
        present = label.unique().tolist()
        strange = [
            c for c in present if c >= self.num_classes and c != IGNORE_LABEL
        ]
        if strange:
            raise ValueError(
                f'Pseudo-labels have the classes {strange}, but '
                f'{type(self).__name__}.num_classes={self.num_classes}.')
        present = [c for c in present if c not in (self.background, 255)]
        if self.one_object and not self.by_piece:
            # Where the class is absent, its mask is empty: a miss.
            present = [1 - self.background]
        if not self.by_piece:
            numbers = torch.full_like(label, -1)
            for k, c in enumerate(present):
                numbers[label == c] = k
            return numbers, present
        return number_pieces(label, self.background, self.min_area)
