# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Optional, Sequence, Union

import torch
from torch import Tensor

from mmsemi.models.label_smoothing import SimilarityLabelSmoothing
from mmsemi.registry import MODELS
from .bin_map import bin_gaps_at, fit_bin_map
from .class_hierarchy import hierarchical_gaps, hierarchical_platt
from .class_statistics import ClassStatistics
from .platt import apply_platt
from .soft_label_correction import drop_background, replace_confidence

MODES = ('none', 'scalar', 'bin', 'platt', 'temperature')


@MODELS.register_module()
class ClassCalibrator(ClassStatistics):
    """Measure the confidence of each class, and correct it.

    Predictions whose outcome is known are counted in bins of confidence per
    predicted class. From the counts a map from confidence s to corrected
    confidence t is fitted for every class; :meth:`correct` puts t into a row
    of probabilities and keeps the ratios of the others, which is the same as
    adding logit(t) - logit(s) to the class's logit. What has few
    predictions leans on its group, groups on all classes::

        calibrator = ClassCalibrator(80, groups=quantile_groups(counts))
        calibrator.update(scores, labels, outcomes)   # each image
        calibrator.fit()                              # in all processes
        soft_labels = calibrator.correct(probs)

    The maps:

    - 'none': t = s.
    - 'scalar': t = s + g, where g is the class's mean gap.
    - 'bin': as 'scalar', with a gap for each bin.
    - 'platt': t = sigmoid(a logit(s) + b), the maximum a posteriori with
      the group's a and b as centre of the prior.
    - 'temperature': as 'platt' with b = 0; the temperature is 1 / a.

    F. Porcher et al., Better (pseudo-)labels for semi-supervised instance
    segmentation, 2024, correct soft labels by a class-conditional
    calibration error. Of its formulas none is public; the nearest reading is
    ``mode='scalar'``. Its raw gaps make classes with few predictions worse,
    which is why 'platt' is the default.

    All state is in buffers, see :class:`ClassStatistics`, which has
    ``update``, ``reduce``, ``decay`` and the measures.

    Args:
        num_classes (int): Number of foreground classes C.
        num_bins (int): Number of bins B of equal width, closed on the
            right. Defaults to 15.
        groups (Sequence[int], optional): Group of each class, from 0; see
            :func:`frequency_groups`, :func:`quantile_groups` and
            :meth:`set_groups`. Defaults to None: classes lean on all
            classes directly.
        mode (str): The map. Defaults to 'platt'.
        delta (float): 'scalar' and 'bin' keep corrected confidences in
            [delta, 1 - delta]. Defaults to 1e-4.
        kappa (float or str, optional): How many predictions the level above
            is worth to 'scalar' and 'bin'; 0 for raw gaps, 'auto' for
            empirical Bayes, see :func:`hierarchical_gaps`. Defaults to
            None: 0 for 'scalar', as in the paper, 20 for 'bin'.
        interpolate (bool): Whether 'bin' changes linearly between the mean
            confidences of bins, instead of in steps. Defaults to True.
        monotone (bool): Whether 'bin' never maps a bin below a lower one;
            bins that would are pooled. Defaults to True.
        global_width (Sequence[float]): Standard deviations of a and b of
            all classes around (1, 0). Defaults to (1, 1).
        group_width (Sequence[float]): Those of groups around all classes.
            Defaults to (0.5, 0.5).
        class_width (Sequence[float]): Those of classes around their group.
            Defaults to (0.2, 0.4).
        min_slope (float): Smallest a, above 0. Defaults to 0.05.
        rest (str): Where the rest 1 - t goes: 'keep' keeps the ratios of
            the other probabilities; 'similarity' spreads it over foreground
            classes by how much alike they are, for teachers whose other
            probabilities say little. Defaults to 'keep'. Rows without a
            rest to speak of (below 1e-6) are always spread, evenly where no
            similarity is set. :class:`mmsemi.ClassPrototypeHook` sets it
            for 'similarity', of instances; else see :meth:`set_similarity`.
        bg_mass (str): What becomes of the background's probability in rows
            of C + 1: 'keep', or 'drop' to put it to 0 and scale the others
            up. Defaults to 'keep', for query heads, whose background weighs
            little in the loss; 'drop' is for RoI heads, where softer targets
            would make a teacher that is ever less confident.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 num_classes: int,
                 num_bins: int = 15,
                 groups: Optional[Sequence[int]] = None,
                 mode: str = 'platt',
                 delta: float = 1e-4,
                 kappa: Union[float, str, None] = None,
                 interpolate: bool = True,
                 monotone: bool = True,
                 global_width: Sequence[float] = (1., 1.),
                 group_width: Sequence[float] = (0.5, 0.5),
                 class_width: Sequence[float] = (0.2, 0.4),
                 min_slope: float = 0.05,
                 rest: str = 'keep',
                 bg_mass: str = 'keep') -> None:
        super().__init__(num_classes, num_bins, groups)
        choices = dict(
            mode=(mode, MODES),
            rest=(rest, ('keep', 'similarity')),
            bg_mass=(bg_mass, ('keep', 'drop')))
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f'ClassCalibrator.{name}={value!r}; allowed '
                                 f'are {", ".join(map(repr, allowed))}.')
        if not 0 < delta < 0.5:
            raise ValueError(f'ClassCalibrator.delta={delta!r}; allowed are '
                             'numbers above 0 and below 0.5.')
        if kappa is None:
            kappa = 0. if mode == 'scalar' else 20.
        if kappa != 'auto' and (isinstance(kappa, str)
                                or not 0 <= kappa < torch.inf):
            raise ValueError(f'ClassCalibrator.kappa={kappa!r}; allowed are '
                             "finite numbers from 0 and 'auto'.")
        if not min_slope > 0:
            raise ValueError(f'ClassCalibrator.min_slope={min_slope!r}; '
                             'allowed are numbers above 0.')
        widths = dict(
            global_width=global_width,
            group_width=group_width,
            class_width=class_width)
        for name, value in widths.items():
            if len(value) != 2 or not min(value) > 0:
                raise ValueError(f'ClassCalibrator.{name}={value!r}; allowed '
                                 'are two numbers above 0.')
        self.mode = mode
        self.delta = delta
        self.kappa = kappa
        self.interpolate = interpolate
        self.monotone = monotone
        self.widths = (global_width, group_width, class_width)
        self.min_slope = min_slope
        self.rest = rest
        self.bg_mass = bg_mass
        self.register_buffer('params', self._params(self.statistics))
        # Whether a fit has seen any prediction.
        self.register_buffer('active', torch.tensor(False))
        # Of no size until it is set.
        self.register_buffer('similarity', torch.zeros(0, 0))

    # Fitting ----------------------------------------------------------------

    @torch.no_grad()
    def set_similarity(self, table: Tensor) -> None:
        """Set how much alike classes are.

        Args:
            table (Tensor): Weights (C, C) from 0: row y says where
                confidence goes that is taken from class y. The diagonal is
                left out and rows are scaled to sum to 1; rows without a
                weight become even.

        Raises:
            ValueError: If the shape is wrong or a value is below 0 or not
                finite.
        """
        shape = (self.num_classes, self.num_classes)
        if table.shape != shape or not table.isfinite().all() or (table
                                                                  < 0).any():
            raise ValueError(
                'ClassCalibrator.set_similarity takes finite numbers from 0 '
                f'of shape {shape}, got {tuple(table.shape)}.')
        table = table.detach().to(self.similarity).clone().fill_diagonal_(0.)
        even = torch.ones_like(table).fill_diagonal_(0.)
        total = table.sum(1, keepdim=True)
        table = table.where(total > 0, even)
        self.similarity = table / table.sum(1, keepdim=True).clamp(min=1e-30)

    @property
    def needs_statistics(self) -> bool:
        """bool: Whether it must be known how much alike classes are."""
        return self.rest == 'similarity'

    @property
    def has_statistics(self) -> bool:
        """bool: Whether it is known how much alike classes are."""
        return self.similarity.numel() > 0

    def set_statistics(self, similarity: Tensor, counts: Tensor) -> None:
        """Take over similarities of classes, as label smoothing does.

        Confidence taken from a class goes where
        :class:`SimilarityLabelSmoothing` with its defaults puts the mass.
        :meth:`set_similarity` takes any other shares.

        Args:
            similarity (Tensor): Cosines (C, C) between the classes.
            counts (Tensor): Labelled instances (C,) of each class.

        Raises:
            ValueError: See :meth:`SimilarityLabelSmoothing.set_statistics`.
        """
        smoothing = SimilarityLabelSmoothing(self.num_classes)
        smoothing.set_statistics(similarity, counts)
        self.set_similarity(smoothing.neighbours())

    @torch.no_grad()
    def fit(self) -> None:
        """Reduce, then fit the maps to the statistics of all processes.

        All processes must call it. It is deterministic: they find the same
        maps without exchanging them.
        """
        self.reduce()
        self.params.copy_(self._params(self.statistics))
        self.active.fill_(bool(self.statistics[..., 0].any()))

    def _params(self, statistics: Tensor) -> Tensor:
        """Return what the map of each class is made of, (C, ...)."""
        if self.mode == 'none':
            return statistics.new_zeros((self.num_classes, 0))
        if self.mode == 'scalar':
            return hierarchical_gaps(
                statistics.sum(1, keepdim=True), self.groups, self.kappa)
        if self.mode == 'bin':
            return fit_bin_map(statistics, self.groups, self.kappa,
                               self.monotone)
        return hierarchical_platt(
            statistics,
            self.groups,
            self.widths,
            self.min_slope,
            slope_only=self.mode == 'temperature')

    # Correcting -------------------------------------------------------------

    @torch.no_grad()
    def transform(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return corrected confidences.

        Args:
            scores (Tensor): Confidences of any shape, in [0, 1].
            labels (Tensor): Their classes, of the same shape, 0 to C - 1.

        Returns:
            Tensor: Of the type and shape of ``scores``; bit-identical for
            classes without a correction.
        """
        return self._map(scores, labels).to(scores.dtype)

    def _map(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return corrected confidences in double precision."""
        s = scores.double()
        if self.mode == 'none':
            return s
        params = self.params.to(s.device)
        if self.mode in ('platt', 'temperature'):
            slope, offset = params[labels].unbind(-1)
            return apply_platt(s, slope, offset)
        if self.mode == 'scalar':
            gaps = params[labels].squeeze(-1)
        else:
            gaps = bin_gaps_at(scores, labels, params, self.interpolate)
        return s.where(gaps == 0,
                       (s + gaps).clamp(self.delta, 1 - self.delta))

    @torch.no_grad()
    def correct(self, probs: Tensor,
                labels: Optional[Tensor] = None) -> Tensor:
        """Put the corrected confidence into rows of probabilities.

        Args:
            probs (Tensor): Probabilities (..., K) that sum to 1, with K = C
                or, background last, C + 1. Dense ones (N, C, H, W) come as
                ``probs.movedim(1, -1)``.
            labels (Tensor, optional): Predicted classes (...), 0 to C - 1.
                Defaults to None: the foreground class of highest
                probability.

        Returns:
            Tensor: Corrected rows (..., K) of the same type. The predicted
            class need not have the highest probability any more. Rows whose
            confidence does not change are bit-identical, except that with
            ``bg_mass='drop'`` all rows lose their background as soon as
            anything has been fitted.

        Raises:
            ValueError: If K fits neither, or ``rest='similarity'`` misses
                its similarities.
        """
        columns = probs.shape[-1]
        if columns - self.num_classes not in (0, 1):
            raise ValueError(
                f'ClassCalibrator.correct takes num_classes = '
                f'{self.num_classes} probabilities a row, or one more for '
                f'the background, got {columns}.')
        if self.mode == 'none':
            return probs
        self.check_similarity()
        if labels is None:
            labels = probs[..., :self.num_classes].argmax(-1)
        scores = probs.gather(-1, labels[..., None]).squeeze(-1)
        corrected = replace_confidence(
            probs, labels, self._map(scores, labels), self.num_classes,
            self.similarity if self.has_statistics else None, self.rest)
        if self.bg_mass == 'drop' and columns > self.num_classes:
            corrected = drop_background(corrected).where(
                self.active.to(probs.device), corrected)
        return corrected

    def check_similarity(self) -> None:
        """Raise ValueError if ``rest`` misses its similarities."""
        if self.needs_statistics and not self.has_statistics:
            raise ValueError(
                "ClassCalibrator.rest='similarity' does not know how much "
                "alike the classes are. Add dict(type='mmsemi."
                "ClassPrototypeHook') to custom_hooks, load a checkpoint that "
                'knows, or call set_similarity().')

    @torch.no_grad()
    def score_thresholds(self, target: float) -> Tensor:
        """Return the uncorrected score that reaches a corrected one.

        A filter on corrected scores is the same as a filter on uncorrected
        ones with these thresholds.

        Args:
            target (float): Corrected confidence in (0, 1).

        Returns:
            Tensor: (C,), float64: the lowest score that is mapped to at
            least ``target``, to 1e-9; 1 where none is. Exact for maps that
            rise, which all do but 'bin' without ``monotone`` or without
            ``interpolate``.

        Raises:
            ValueError: If ``target`` is out of range.
        """
        if not 0 < target < 1:
            raise ValueError(f'ClassCalibrator.score_thresholds got target='
                             f'{target!r}; allowed are numbers above 0 and '
                             'below 1.')
        labels = torch.arange(self.num_classes, device=self.params.device)
        low = torch.zeros_like(labels, dtype=torch.float64)
        high = torch.ones_like(low)
        for _ in range(32):
            middle = (low + high) / 2
            reached = self._map(middle, labels) >= target
            low, high = low.where(reached, middle), high.where(
                ~reached, middle)
        return high

    # Checkpoints ------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: dict, prefix: str,
                              *args) -> None:
        saved = state_dict.get(f'{prefix}similarity')
        square = (self.num_classes, self.num_classes)
        if saved is not None and tuple(saved.shape) in ((0, 0), square):
            self.similarity = self.similarity.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Return the main settings, for ``print``."""
        return (f'num_classes={self.num_classes}, num_bins={self.num_bins}, '
                f'mode={self.mode!r}')
