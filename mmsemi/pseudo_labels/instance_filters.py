# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Stages that decide which pseudo-instances the student learns from."""
import math
from abc import abstractmethod
from typing import List, Mapping, Optional, Sequence, Union

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from mmsemi.registry import TRANSFORMS
from mmsemi.structures.view_geometry import masks_to_boxes
from .mask_overlap import mask_iou
from .pipeline import PseudoLabelStage


def check_unit_interval(value: float, field: str) -> float:
    """Return ``value`` if it lies in [0, 1], else raise ValueError."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f'{field}={value!r}; allowed are numbers from 0 '
                         'to 1.')
    return float(value)


def box_areas(bboxes: Tensor) -> Tensor:
    """Return the areas (N,) of boxes (N, 4); 0 for degenerate ones."""
    return (bboxes[:, 2:] - bboxes[:, :2]).clamp(min=0).prod(1)


class InstanceFilter(PseudoLabelStage):
    """A stage that keeps some instances of each image."""

    @abstractmethod
    def keep(self, pseudo_label: InstanceData) -> Tensor:
        """Return a bool mask (N,) or an index (K,) of what stays."""

    def forward(self, pseudo_labels: List[InstanceData],
                data_samples: List[BaseDataElement]) -> List[InstanceData]:
        """Filter every image; see :class:`PseudoLabelStage`."""
        return [label[self.keep(label)] for label in pseudo_labels]


@TRANSFORMS.register_module()
class FilterByScore(InstanceFilter):
    """Keep instances whose score is above a threshold.

    Args:
        score_thr (float): Threshold in [0, 1] for classes that
            ``class_score_thr`` does not name. Kept is what scores strictly
            more, as in mmdet.
        class_score_thr (Sequence[float] or Mapping[int, float], optional):
            Thresholds by class index: a sequence for all classes, or a
            mapping for some. Defaults to None.
    """

    requires = ('scores', 'labels')

    def __init__(
        self,
        score_thr: float,
        class_score_thr: Optional[Union[Sequence[float],
                                        Mapping[int, float]]] = None
    ) -> None:
        super().__init__()
        self.score_thr = check_unit_interval(score_thr,
                                             'FilterByScore.score_thr')
        if class_score_thr is None:
            class_score_thr = {}
        elif not isinstance(class_score_thr, Mapping):
            class_score_thr = dict(enumerate(class_score_thr))
        self.class_score_thr = {
            int(c): check_unit_interval(
                thr, f'FilterByScore.class_score_thr[{c}]')
            for c, thr in class_score_thr.items()
        }
        if any(c < 0 for c in self.class_score_thr):
            raise ValueError('FilterByScore.class_score_thr has the class '
                             f'index {min(self.class_score_thr)}; indices '
                             'start at 0.')
        # One lookup instead of one launch per class. NaN stands for
        # score_thr, in the last entry for all classes from there on.
        table = torch.full((max(self.class_score_thr, default=-1) + 2, ),
                           torch.nan)
        for c, thr in self.class_score_thr.items():
            table[c] = thr
        self.register_buffer('class_table', table, persistent=False)

    def thresholds(self, labels: Tensor, scores: Tensor) -> Tensor:
        """Return the threshold (N,) of each instance."""
        table = self.class_table.to(scores)
        own = table[labels.clamp(max=len(table) - 1)]
        return own.where(~own.isnan(), self.score_thr)

    def keep(self, pseudo_label: InstanceData) -> Tensor:
        """Return what scores above its threshold, (N,) bool."""
        scores = pseudo_label.scores
        return scores > self.thresholds(pseudo_label.labels, scores)


@TRANSFORMS.register_module()
class FilterByArea(InstanceFilter):
    """Keep instances whose area lies in a range.

    The area is that of the mask, or of the box where there are no masks.

    Args:
        min_area (float): Smallest area in pixels of the teacher's view.
            Defaults to 1, which drops empty masks.
        max_area (float, optional): Largest area in pixels. Defaults to
            None: no limit.
    """

    requires = ('bboxes', )

    def __init__(self,
                 min_area: float = 1,
                 max_area: Optional[float] = None) -> None:
        super().__init__()
        limit = math.inf if max_area is None else max_area
        if not (isinstance(min_area, (int, float)) and isinstance(
                limit, (int, float)) and 0 <= min_area <= limit):
            raise ValueError(
                f'FilterByArea got min_area={min_area}, max_area={max_area}; '
                'allowed are 0 <= min_area <= max_area, in pixels.')
        self.min_area = min_area
        self.max_area = max_area

    def keep(self, pseudo_label: InstanceData) -> Tensor:
        """Return what has a fitting area, (N,) bool."""
        if 'masks' in pseudo_label:
            areas = pseudo_label.masks.flatten(1).sum(1)
        else:
            areas = box_areas(pseudo_label.bboxes)
        kept = areas >= self.min_area
        if self.max_area is not None:
            kept &= areas <= self.max_area
        return kept


@TRANSFORMS.register_module()
class FilterByMaskCells(InstanceFilter):
    """Keep instances whose mask covers enough cells of the decoder's grid.

    A query answers even where it found nothing, with a mask of a few cells.

    As in Guided Distillation (T. Berrada et al., WACV 2024): more than 5
    cells at stride 4. The released code counts a cell by its probability,
    over the whole grid; here every pixel of the mask counts
    1 / stride ** 2, and none outside.

    Args:
        min_cells (float): Kept is what covers strictly more. Defaults to 5.
        stride (int): Pixels along the side of a cell. Defaults to 4.

    Raises:
        ValueError: If an argument is out of range.
    """

    requires = ('masks', )

    def __init__(self, min_cells: float = 5., stride: int = 4) -> None:
        super().__init__()
        if not isinstance(min_cells,
                          (int, float)) or not 0 <= min_cells < math.inf:
            raise ValueError(f'FilterByMaskCells.min_cells={min_cells!r}; '
                             'allowed are finite numbers from 0.')
        if isinstance(stride, bool) or not isinstance(stride,
                                                      int) or stride < 1:
            raise ValueError(f'FilterByMaskCells.stride={stride!r}; allowed '
                             'are whole numbers from 1, in pixels.')
        self.min_cells = min_cells
        self.stride = stride

    def keep(self, pseudo_label: InstanceData) -> Tensor:
        """Return what covers enough cells, (N,) bool."""
        areas = pseudo_label.masks.flatten(1).sum(1)
        return areas > self.min_cells * self.stride**2


@TRANSFORMS.register_module()
class FilterByMaskQuality(InstanceFilter):
    """Keep instances whose mask can be trusted.

    A class score says little about a mask. Two measures are at hand without
    a second pass of the teacher. *Mask score*: the mean foreground
    probability inside the mask, as SOLOv2 and Mask2Former multiply into
    their scores already; here for detectors of the Mask R-CNN family, which
    do not. *Box agreement*: IoU of the mask's tight box with the box that
    the detector regressed, for detectors that regress one.

    Args:
        min_mask_score (float, optional): Lowest mask score in [0, 1].
            Defaults to None: not used.
        min_box_iou (float, optional): Lowest box agreement in [0, 1].
            Defaults to None: not used.

    Raises:
        ValueError: If neither is given.
    """

    def __init__(self,
                 min_mask_score: Optional[float] = None,
                 min_box_iou: Optional[float] = None) -> None:
        super().__init__()
        if min_mask_score is None and min_box_iou is None:
            raise ValueError('FilterByMaskQuality needs min_mask_score, '
                             'min_box_iou or both.')
        self.requires = ('masks', 'bboxes')
        if min_mask_score is not None:
            check_unit_interval(min_mask_score,
                                'FilterByMaskQuality.min_mask_score')
            self.requires += ('mask_scores', )
        if min_box_iou is not None:
            check_unit_interval(min_box_iou,
                                'FilterByMaskQuality.min_box_iou')
        self.min_mask_score = min_mask_score
        self.min_box_iou = min_box_iou

    def keep(self, pseudo_label: InstanceData) -> Tensor:
        """Return what has a good mask, (N,) bool."""
        kept = pseudo_label.masks.flatten(1).any(1)
        if self.min_mask_score is not None:
            kept &= pseudo_label.mask_scores >= self.min_mask_score
        if self.min_box_iou is not None:
            boxes = pseudo_label.bboxes
            tight = masks_to_boxes(pseudo_label.masks).to(boxes)
            top_left = torch.maximum(boxes[:, :2], tight[:, :2])
            bottom_right = torch.minimum(boxes[:, 2:], tight[:, 2:])
            inter = (bottom_right - top_left).clamp(min=0).prod(1)
            union = box_areas(boxes) + box_areas(tight) - inter
            kept &= inter >= self.min_box_iou * union
        return kept


@TRANSFORMS.register_module()
class RemoveDuplicates(InstanceFilter):
    """Of instances that overlap strongly, keep the one that scores highest.

    Query-based heads do no suppression, and one object found twice with two
    classes is at least once wrong.

    Args:
        iou_thr (float): Instances that overlap a better one by more than
            this IoU (of masks, else of boxes) go. Defaults to 0.5.
        class_agnostic (bool): Whether instances of different classes
            compete. Defaults to True.
    """

    requires = ('bboxes', 'labels', 'scores')

    def __init__(self,
                 iou_thr: float = 0.5,
                 class_agnostic: bool = True) -> None:
        super().__init__()
        self.iou_thr = check_unit_interval(iou_thr,
                                           'RemoveDuplicates.iou_thr')
        self.class_agnostic = class_agnostic

    def overlaps(self, pseudo_label: InstanceData) -> Tensor:
        """Return the IoU (N, N) of all pairs."""
        if 'masks' in pseudo_label:
            return mask_iou(pseudo_label.masks, pseudo_label.masks)
        boxes = pseudo_label.bboxes.float()
        top_left = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
        bottom_right = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        inter = (bottom_right - top_left).clamp(min=0).prod(2)
        areas = box_areas(boxes)
        union = areas[:, None] + areas - inter
        return inter / union.clamp(min=1e-6)

    def keep(self, pseudo_label: InstanceData) -> Tensor:
        """Return the survivors' index, best score first, (K,) int64."""
        order = pseudo_label.scores.argsort(descending=True, stable=True)
        rivals = self.overlaps(pseudo_label) > self.iou_thr
        if not self.class_agnostic:
            labels = pseudo_label.labels
            rivals &= labels[:, None] == labels
        # The greedy pass is sequential; on the host it costs one transfer
        # instead of one launch per instance.
        rivals = rivals[order][:, order].cpu().numpy()
        survivors: List[int] = []
        for i in range(len(rivals)):
            if not rivals[i, survivors].any():
                survivors.append(i)
        return order[torch.tensor(
            survivors, dtype=torch.long, device=order.device)]


@TRANSFORMS.register_module()
class KeepTopScores(InstanceFilter):
    """Keep the instances of an image that score highest.

    Args:
        max_per_image (int): At most so many stay.
    """

    requires = ('scores', )

    def __init__(self, max_per_image: int) -> None:
        super().__init__()
        if not isinstance(max_per_image, int) or max_per_image < 1:
            raise ValueError(f'KeepTopScores.max_per_image={max_per_image!r};'
                             ' allowed are whole numbers from 1.')
        self.max_per_image = max_per_image

    def keep(self, pseudo_label: InstanceData) -> Tensor:
        """Return the index of the best, best first, (K,) int64."""
        order = pseudo_label.scores.argsort(descending=True, stable=True)
        return order[:self.max_per_image]


@TRANSFORMS.register_module()
class SkipUncertainImages(PseudoLabelStage):
    """Take an image out of the unsupervised loss if the teacher hesitates.

    What is filtered away becomes background to the student, so an object
    that the teacher saw with a middling score teaches the student to
    overlook it. An image is used only if every instance that scores above
    ``low_thr`` also scores above ``high_thr``. Put this stage before the
    score filter. It marks images with the meta field ``usable``; the method
    leaves out those marked False.

    Args:
        low_thr (float): Scores from here to ``high_thr`` are uncertain.
        high_thr (float): Scores above are certain.
        skip_empty (bool): Also leave out images in which nothing scores
            above ``high_thr``. Defaults to False.
    """

    requires = ('scores', )

    def __init__(self,
                 low_thr: float,
                 high_thr: float,
                 skip_empty: bool = False) -> None:
        super().__init__()
        self.low_thr = check_unit_interval(low_thr,
                                           'SkipUncertainImages.low_thr')
        self.high_thr = check_unit_interval(high_thr,
                                            'SkipUncertainImages.high_thr')
        if low_thr >= high_thr:
            raise ValueError(
                f'SkipUncertainImages got low_thr={low_thr}, high_thr='
                f'{high_thr}; low_thr must be below high_thr.')
        self.skip_empty = skip_empty

    def forward(self, pseudo_labels: List[InstanceData],
                data_samples: List[BaseDataElement]) -> List[InstanceData]:
        """Mark every image; see :class:`PseudoLabelStage`."""
        marked = []
        for label in pseudo_labels:
            certain = label.scores > self.high_thr
            uncertain = (label.scores > self.low_thr) & ~certain
            usable = not bool(uncertain.any())
            if self.skip_empty:
                usable = usable and bool(certain.any())
            label = label.new()
            label.set_metainfo(
                dict(usable=usable and label.get('usable', True)))
            marked.append(label)
        return marked
