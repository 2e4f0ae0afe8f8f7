# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Stages that decide which pixels the student learns from.

They lower ``weight`` of dense pseudo-labels and leave everything else.
"""
from abc import abstractmethod
from typing import List, Mapping, Optional, Sequence, Union

import torch
from mmengine.dist import all_reduce
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmsemi.registry import TRANSFORMS
from mmsemi.structures.dense_pseudo_label import DensePseudoLabel, DenseTargets
from .instance_filters import check_unit_interval
from .pipeline import PseudoLabelStage


class PixelFilter(PseudoLabelStage):
    """A stage that keeps some pixels of a batch."""

    requires = ('label', 'confidence', 'weight', 'valid')
    writes = ('weight', )

    @abstractmethod
    def keep(self, targets: DenseTargets) -> Tensor:
        """Return what stays, (N, H, W) bool."""

    def forward(self, pseudo_labels: List[DensePseudoLabel],
                data_samples: List[BaseDataElement]
                ) -> List[DensePseudoLabel]:
        """Filter a batch; see :class:`PseudoLabelStage`."""
        targets = DenseTargets.from_pseudo_labels(pseudo_labels)
        weight = targets.weight * self.keep(targets)
        return targets.replace(weight=weight).unbind()


@TRANSFORMS.register_module()
class KeepConfidentPixels(PixelFilter):
    """Keep pixels whose confidence reaches a threshold.

    K. Sohn et al., FixMatch, NeurIPS 2020, equation 4, for every pixel.

    Args:
        conf_thr (float): Threshold in [0, 1] for classes that
            ``class_conf_thr`` does not name. Kept is what is at least as
            confident. Defaults to 0.95.
        class_conf_thr (Sequence[float] or Mapping[int, float], optional):
            Thresholds by class index: a sequence for the first classes, or
            a mapping. Defaults to None.
    """

    def __init__(
        self,
        conf_thr: float = 0.95,
        class_conf_thr: Optional[Union[Sequence[float],
                                       Mapping[int, float]]] = None
    ) -> None:
        super().__init__()
        self.conf_thr = check_unit_interval(conf_thr,
                                            'KeepConfidentPixels.conf_thr')
        if class_conf_thr is None:
            class_conf_thr = {}
        elif not isinstance(class_conf_thr, Mapping):
            class_conf_thr = dict(enumerate(class_conf_thr))
        field = 'KeepConfidentPixels.class_conf_thr'
        for c in class_conf_thr:
            if isinstance(c, bool) or not isinstance(c, int) or c < 0:
                raise ValueError(f'{field} has the class index {c!r}; '
                                 'indices are whole numbers from 0.')
        # The last entry serves all classes from there on.
        table = torch.full((max(class_conf_thr, default=-1) + 2, ),
                           self.conf_thr)
        for c, thr in class_conf_thr.items():
            table[c] = check_unit_interval(thr, f'{field}[{c}]')
        self.register_buffer('class_table', table, persistent=False)

    def keep(self, targets: DenseTargets) -> Tensor:
        """Return what reaches its threshold, (N, H, W) bool."""
        return targets.confidence >= thresholds_of(self.class_table,
                                                   targets.label)


def thresholds_of(table: Tensor, label: Tensor) -> Tensor:
    """Look up the threshold of every pixel.

    Args:
        table (Tensor): (K,) by class; the last serves all labels above.
        label (Tensor): Class indices of any shape, int64.

    Returns:
        Tensor: Of the shape of ``label``.
    """
    table = table.to(label.device)
    return table[label.clamp(max=len(table) - 1)]


@TRANSFORMS.register_module()
class KeepAboveClassThresholds(PixelFilter):
    """Keep pixels above a threshold of their class that is set from outside.

    What measures the teacher, such as :class:`mmsemi.ClassThresholdHook`,
    calls :meth:`move_thresholds`. The thresholds are part of every
    checkpoint.

    Args:
        initial_thr (float): Threshold of all classes at the start, in [0,
            1]. Defaults to 0.95.
    """

    def __init__(self, initial_thr: float = 0.95) -> None:
        super().__init__()
        initial_thr = check_unit_interval(
            initial_thr, 'KeepAboveClassThresholds.initial_thr')
        # Every label has an entry, so that the model's number of classes
        # need not be known.
        self.register_buffer('thresholds', torch.full((256, ), initial_thr))

    @torch.no_grad()
    def move_thresholds(self, thresholds: Tensor,
                        momentum: float = 1.) -> None:
        """Move the thresholds of the first classes towards new ones.

        Args:
            thresholds (Tensor): (C,) in [0, 1].
            momentum (float): Share of the new ones, in (0, 1]. Defaults
                to 1.
        """
        known = self.thresholds[:len(thresholds)]
        known.lerp_(thresholds.to(known), momentum)

    def keep(self, targets: DenseTargets) -> Tensor:
        """Return what reaches its class's threshold, (N, H, W) bool."""
        return targets.confidence >= thresholds_of(self.thresholds,
                                                   targets.label)


@TRANSFORMS.register_module()
class KeepLowEntropyPixels(PixelFilter):
    """Keep the pixels of a batch whose prediction is least uncertain.

    The share of pixels dropped falls linearly from ``drop_percent`` to 0
    within ``num_steps``. The limit is a percentile of the entropies of the
    batch; a pixel at the limit is dropped, so that the most uncertain one
    always is, as in the released code. Each process takes the percentile of
    its own images.

    Y. Wang et al., U2PL, CVPR 2022, section 3.2 and equation 5.

    Args:
        drop_percent (float): Percentage of pixels dropped at the start, in
            [0, 100]. Defaults to 20.
        num_steps (int): Optimizer steps until none is dropped.

    Raises:
        ValueError: If an argument is out of range.
    """

    requires = PixelFilter.requires + ('prob', )

    def __init__(self, num_steps: int, drop_percent: float = 20.) -> None:
        super().__init__()
        if not 0 <= drop_percent <= 100:
            raise ValueError(
                f'KeepLowEntropyPixels.drop_percent={drop_percent!r}; '
                'allowed are numbers from 0 to 100.')
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f'KeepLowEntropyPixels.num_steps={num_steps!r}; '
                             'allowed are whole numbers from 1.')
        self.drop_percent = float(drop_percent)
        self.num_steps = num_steps

    @property
    def kept_percent(self) -> float:
        """float: Percentile of the entropies that is the limit now."""
        progress = min(self.step / self.num_steps, 1.)
        return 100 - self.drop_percent * (1 - progress)

    def keep(self, targets: DenseTargets) -> Tensor:
        """Return what is below the limit, (N, H, W) bool."""
        entropy = -(targets.prob * (targets.prob + 1e-10).log()).sum(1)
        known = entropy[targets.valid]
        if known.numel() == 0:
            return targets.valid
        return entropy < percentile(known, self.kept_percent)


def percentile(values: Tensor, percent: float) -> Tensor:
    """Return a percentile with linear interpolation, as NumPy does.

    ``torch.quantile`` takes 16 million values at most.

    Args:
        values (Tensor): (N,), N at least 1.
        percent (float): In [0, 100].

    Returns:
        Tensor: Scalar.
    """
    ordered = values.sort().values
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low)


@TRANSFORMS.register_module()
class KeepAboveAdaptiveThreshold(PixelFilter):
    """Keep pixels above a threshold that follows the teacher.

    In training each batch moves the threshold towards the mean, over the
    predicted classes, of the highest confidence in that class; the classes
    are those of all processes. The threshold is a buffer and part of every
    checkpoint.

    B. Sun et al., CorrMatch, CVPR 2024, section 3.3. The released code takes
    the maxima of weak views under the padding of mixed images; here both
    belong to the weak views.

    Args:
        initial_thr (float): Threshold at the start, in [0, 1]. Defaults to
            0.85.
        momentum (float): Share of a batch in one update, in (0, 1].
            Defaults to 0.001.
    """

    def __init__(self,
                 initial_thr: float = 0.85,
                 momentum: float = 0.001) -> None:
        super().__init__()
        name = type(self).__name__
        initial_thr = check_unit_interval(initial_thr, f'{name}.initial_thr')
        self.momentum = check_unit_interval(momentum, f'{name}.momentum')
        self.register_buffer('threshold', torch.tensor(initial_thr))

    def keep(self, targets: DenseTargets) -> Tensor:
        """Update the threshold and return what reaches it."""
        if self.training:
            statistic = mean_class_maximum(targets).to(self.threshold)
            # Nothing but padding says nothing.
            statistic = statistic.where(statistic > 0, self.threshold)
            self.threshold.lerp_(statistic, self.momentum)
        return targets.confidence >= self.threshold


def mean_class_maximum(targets: DenseTargets) -> Tensor:
    """Return the mean of the predicted classes' highest confidences.

    Args:
        targets (DenseTargets): Of a batch; on several processes each gives
            its own.

    Returns:
        Tensor: Scalar; 0 if all is padding.
    """
    known = targets.valid
    maxima = targets.confidence.new_zeros(256)
    maxima.scatter_reduce_(0, targets.label[known],
                           targets.confidence[known], 'amax')
    all_reduce(maxima, 'max')
    present = maxima > 0
    return maxima.sum() / present.sum().clamp(min=1)
