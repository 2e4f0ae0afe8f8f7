# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Optional, Sequence

import torch
from mmengine.dist import all_reduce, get_rank
from torch import Tensor, nn

from . import calibration_measures as measures
from .class_hierarchy import check_groups


class ClassStatistics(nn.Module):
    """Count confidences and outcomes in bins per predicted class.

    All state is in buffers. ``statistics`` (C, B, 3), float64, holds what
    all processes have counted together, ``pending`` what this one has since
    the last :meth:`reduce`. The sums are exact, so they do not depend on the
    order of predictions or on the number of processes. A checkpoint keeps
    the ``pending`` of one process only: reduce before it is written.

    Args:
        num_classes (int): Number of foreground classes C.
        num_bins (int): Number of bins B of equal width, closed on the
            right. Defaults to 15.
        groups (Sequence[int], optional): Group of each class, from 0; see
            :func:`frequency_groups` and :func:`quantile_groups`. Defaults to
            None: one group of all.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 num_classes: int,
                 num_bins: int = 15,
                 groups: Optional[Sequence[int]] = None) -> None:
        super().__init__()
        self.title = type(self).__name__
        for name, value in dict(
                num_classes=num_classes, num_bins=num_bins).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{self.title}.{name}={value!r}; allowed '
                                 'are whole numbers from 1.')
        self.num_classes = num_classes
        self.num_bins = num_bins
        shape = (num_classes, num_bins, 3)
        for name in ('statistics', 'pending'):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer(
            'groups', check_groups(groups, num_classes,
                                   f'{self.title}.groups'))

    @torch.no_grad()
    def set_groups(self, groups: Sequence[int]) -> None:
        """Set the group of each class (C,), from 0.

        Raises:
            ValueError: If they are not C whole numbers from 0.
        """
        self.groups.copy_(
            check_groups(groups, self.num_classes,
                         f'{self.title}.set_groups'))

    @torch.no_grad()
    def update(self,
               scores: Tensor,
               labels: Tensor,
               outcomes: Tensor,
               weights: Optional[Tensor] = None) -> None:
        """Count predictions of this process.

        Args:
            scores (Tensor): Confidences (N,) in [0, 1], uncorrected.
            labels (Tensor): Predicted classes (N,), 0 to C - 1.
            outcomes (Tensor): Outcomes (N,): bool, or numbers in [0, 1] such
                as the IoU; see :func:`judge_predictions`.
            weights (Tensor, optional): How many predictions each counts as,
                (N,), such as :func:`pixel_weights`. Defaults to None: 1.

        Raises:
            ValueError: If shapes differ or a value is out of range.
        """
        given = dict(scores=scores, labels=labels, outcomes=outcomes)
        if weights is not None:
            given['weights'] = weights
        device = self.pending.device
        given = {k: v.detach().to(device) for k, v in given.items()}
        self._check(given)
        cells, terms = measures.statistic_terms(
            given['scores'], given['labels'].long(), given['outcomes'],
            self.num_bins, given.get('weights'))
        self.pending.view(-1, 3).index_add_(0, cells, terms)

    def _check(self, given: dict) -> None:
        shape = given['scores'].shape
        if len(shape) != 1 or any(v.shape != shape for v in given.values()):
            raise ValueError(
                f'{self.title}.update takes values (N,) of one length, got '
                f'{ {k: tuple(v.shape) for k, v in given.items()} }.')
        if shape[0] == 0:
            return
        labels = given['labels']
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f'{self.title}.update takes labels from 0 to num_classes - '
                f'1 = {self.num_classes - 1}, got {int(labels.min())} to '
                f'{int(labels.max())}.')
        for name, values in given.items():
            if name == 'labels':
                continue
            low, high = values.double().aminmax()
            # A product of probabilities may be rounded up to above 1.
            most = torch.inf if name == 'weights' else 1 + 1e-6
            # NaN is in no range.
            if not (low >= 0 and high <= most and high < torch.inf):
                raise ValueError(f'{self.title}.update takes {name} in '
                                 f'[0, {most:.0f}], got {low:g} to '
                                 f'{high:g}.')

    @torch.no_grad()
    def reduce(self) -> None:
        """Add up what the processes counted since the last time.

        All processes must call it. Nothing is counted twice, however often
        they do.
        """
        all_reduce(self.pending)
        self.statistics += self.pending
        self.pending.zero_()

    @torch.no_grad()
    def decay(self, factor: float) -> None:
        """Let earlier passes count less, before or after a new one.

        What was added since the last :meth:`reduce` is the new pass and
        keeps its weight.

        Args:
            factor (float): In [0, 1]; 0.5 makes one pass the half-life, 0
                forgets.

        Raises:
            ValueError: If ``factor`` is out of range.
        """
        if not 0 <= factor <= 1:
            raise ValueError(f'{self.title}.decay got factor={factor!r}; '
                             'allowed are numbers from 0 to 1.')
        self.statistics *= factor

    @property
    def total(self) -> Tensor:
        """Tensor: All that this process knows of, (C, B, 3)."""
        return self.statistics + self.pending

    def calibration_error(self, signed: bool = False) -> Tensor:
        """Return the class-conditional calibration error.

        Args:
            signed (bool): Whether gaps keep their sign, above 0 for
                under-confident classes. Defaults to False.

        Returns:
            Tensor: (C,), float64; NaN for classes without predictions. Of
            what is counted, :func:`bin_gaps`, :func:`group_means` and the
            other functions of ``calibration_measures`` tell more.
        """
        return measures.calibration_error(self.total, signed)

    def bin_gaps(self) -> Tensor:
        """Return outcome minus confidence in every bin, (C, B)."""
        return measures.bin_gaps(self.total)

    def null_calibration_error(self) -> Tensor:
        """Return the absolute error that luck gives a right class, (C,)."""
        return measures.null_calibration_error(self.total)

    def excess_calibration_error(self) -> Tensor:
        """Return the absolute error above that of luck, (C,)."""
        return measures.excess_calibration_error(self.total)

    def debiased_squared_error(self) -> Tensor:
        """Return the squared error without its bias of few samples, (C,)."""
        return measures.debiased_squared_error(self.total)

    def group_means(self, values: Tensor) -> Tensor:
        """Return the means (G,) of values by class (C,), NaN left out."""
        return measures.group_means(values, self.groups)

    def _load_from_state_dict(self, state_dict: dict, prefix: str,
                              *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # What one process had pending must be added once.
        if f'{prefix}pending' in state_dict and get_rank() > 0:
            self.pending.zero_()
