# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Soft targets that say which other classes a class looks like."""
import math
from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from mmsemi.registry import MODELS

KERNELS = ('softmax', 'relu', 'uniform')
#: With more classes than this, only the most similar ones get a share.
MANY_CLASSES = 100
TOPK_OF_MANY = 20


def power_strength(counts: Tensor,
                   eps_0: float = 0.1,
                   n_ref: float = 100.,
                   gamma: float = 0.25,
                   eps_max: float = 0.3) -> Tensor:
    """Smooth classes by a power of their number of instances.

    Args:
        counts (Tensor): Instances (C,) of each class.
        eps_0 (float): Strength of a class of ``n_ref`` instances.
        n_ref (float): See there.
        gamma (float): Exponent; above 0 rare classes are smoothed more.
        eps_max (float): Largest strength.

    Returns:
        Tensor: min(eps_max, eps_0 * (n_ref / n) ** gamma), (C,) float64.
    """
    counts = counts.double().clamp(min=1)
    return (eps_0 * (n_ref / counts)**gamma).clamp(max=eps_max)


def concave_strength(counts: Tensor, head: float, tail: float) -> Tensor:
    """Smooth frequent classes more, as MiSLAS does.

    Z. Zhong et al., Improving Calibration for Long-Tailed Recognition, CVPR
    2021, the concave form: tail + (head - tail) * sin(pi / 2 * (n - n_min) /
    (n_max - n_min)).

    Args:
        counts (Tensor): Instances (C,) of each class; classes without count
            as the rarest.
        head (float): Strength of the most frequent class.
        tail (float): Strength of the rarest class, and of all if they are
            equally frequent.

    Returns:
        Tensor: (C,) float64.
    """
    counts = counts.double()
    seen = counts[counts > 0]
    low, high = seen.min(), seen.max()
    share = (counts.clamp(min=low) - low) / (high - low).clamp(min=1)
    return tail + (head - tail) * torch.sin(math.pi / 2 * share)


def neighbour_distribution(similarity: Tensor,
                           counts: Tensor,
                           kernel: str = 'softmax',
                           temperature: float = 0.1,
                           topk: Optional[int] = None) -> Tensor:
    """Return how the mass taken from a class spreads over the others.

    Args:
        similarity (Tensor): Cosines (C, C) between the classes.
        counts (Tensor): Instances (C,) of each class. A class without gets
            no mass, and spreads its own evenly.
        kernel (str): 'softmax': exp(cosine / temperature); 'relu': the
            positive part of the cosine; 'uniform': the same for all.
        temperature (float): Of the softmax.
        topk (int, optional): Only so many most similar classes get a share.
            Defaults to None: all do.

    Returns:
        Tensor: Rows (C, C) float64 that sum to 1, 0 on the diagonal; a
        single class has a row of zero.
    """
    similarity = similarity.double()
    others = ~torch.eye(
        len(counts), dtype=torch.bool, device=similarity.device)
    allowed = others & (counts > 0)
    even = torch.where(allowed.any(1, keepdim=True), allowed, others)
    even = even.where(counts[:, None] > 0, others)
    if topk is not None:
        ranked = similarity.masked_fill(~allowed, -math.inf)
        # Stable, so that ties break alike everywhere.
        order = ranked.argsort(dim=1, descending=True, stable=True)[:, :topk]
        allowed &= torch.zeros_like(allowed).scatter_(1, order, True)
    if kernel == 'softmax':
        logits = (similarity / temperature).masked_fill(~allowed, -math.inf)
        # Rows without any allowed class are not numbers.
        mass = logits.softmax(1).nan_to_num(0.)
    elif kernel == 'relu':
        mass = similarity.clamp(min=0) * allowed
    else:
        mass = allowed.double()
    usable = (mass.sum(1) > 0) & (counts > 0)
    mass = mass.where(usable[:, None], even.double())
    return mass / mass.sum(1, keepdim=True).clamp(min=1e-300)


@MODELS.register_module()
class SimilarityLabelSmoothing(nn.Module):
    r"""Label smoothing towards similar classes, by class frequency.

    A sample of class y keeps 1 - eps_y and gives eps_y to the other classes,
    in shares that grow with the cosine S between class prototypes:

    .. math::
        \tilde y(k) = (1 - \epsilon_y) [k = y] + \epsilon_y \pi_y(k), \quad
        \pi_y(k) \propto \exp(S_{yk} / \tau), \quad
        \epsilon_y = \min(\epsilon_{max}, \epsilon_0 (n_{ref}/n_y)^\gamma).

    The background, the last class, gives nothing and gets nothing.

    After F. Porcher et al., Better (pseudo-)labels for semi-supervised
    instance segmentation, 2024 (arXiv 2403.11675): smoothing by the
    similarity of prototypes, amplified for rare classes. Its formulas are
    not public; those above are ours, and every choice in them is a field.
    MiSLAS (Z. Zhong et al., CVPR 2021) smooths the other way round, frequent
    classes more and evenly: ``kernel='uniform'`` with ``concave``, or a
    negative ``gamma``.

    :class:`mmsemi.ClassPrototypeHook` measures similarities and counts
    before the first iteration. They are in every checkpoint, and the table
    of targets follows from them.

    Args:
        num_classes (int): Number of classes C without background.
        kernel (str): 'softmax', 'relu' or 'uniform'; see
            :func:`neighbour_distribution`. Defaults to 'softmax'.
        temperature (float): tau, above 0; only 'softmax' has one. Defaults
            to None: 0.1.
        topk (int, optional): Only so many most similar classes get a share;
            not with 'uniform'. Defaults to None: 20 with more than 100
            classes, else all.
        eps_0 (float): Strength of a class of ``n_ref`` instances, in [0, 1].
            Defaults to 0.1.
        n_ref (float): Number of instances, above 0. Defaults to 100, the
            border of LVIS's frequent classes (which count images).
        gamma (float): Exponent; above 0 rare classes are smoothed more,
            below 0 frequent ones, at 0 all alike. Defaults to 0.25.
        eps_max (float): Largest strength, in [0, 1]. Defaults to 0.3.
        concave (tuple[float, float], optional): Strengths of the most
            frequent and of the rarest class by :func:`concave_strength`,
            instead of the four fields above. Released: (0.3, 0) for
            ImageNet-LT and iNaturalist, (0.4, 0.1) for Places-LT. Defaults
            to None.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 num_classes: int,
                 kernel: str = 'softmax',
                 temperature: Optional[float] = None,
                 topk: Optional[int] = None,
                 eps_0: float = 0.1,
                 n_ref: float = 100.,
                 gamma: float = 0.25,
                 eps_max: float = 0.3,
                 concave: Optional[Tuple[float, float]] = None) -> None:
        super().__init__()
        _check(isinstance(num_classes, int) and num_classes > 0,
               'num_classes', num_classes, 'whole numbers from 1')
        _check(kernel in KERNELS, 'kernel', kernel,
               ', '.join(map(repr, KERNELS)))
        _check(temperature is None or kernel == 'softmax' and temperature > 0,
               'temperature', temperature, 'numbers above 0 with kernel='
               "'softmax', and None with the others")
        _check(
            topk is None or
            (kernel != 'uniform' and isinstance(topk, int) and topk > 0),
            'topk', topk, 'whole numbers from 1, and None with kernel='
            "'uniform'")
        _check(n_ref > 0, 'n_ref', n_ref, 'numbers above 0')
        for field, value in (('eps_0', eps_0), ('eps_max', eps_max)):
            _check(0 <= value <= 1, field, value, 'numbers from 0 to 1')
        if concave is not None:
            _check(
                len(concave) == 2 and all(0 <= eps <= 1 for eps in concave),
                'concave', concave, 'two numbers from 0 to 1')
        self.num_classes = num_classes
        self.kernel = kernel
        self.temperature = 0.1 if temperature is None else float(temperature)
        if (topk is None and num_classes > MANY_CLASSES
                and kernel != 'uniform'):
            topk = TOPK_OF_MANY
        self.topk = topk
        self.power = dict(
            eps_0=eps_0, n_ref=n_ref, gamma=gamma, eps_max=eps_max)
        self.concave = None if concave is None else tuple(concave)
        size = num_classes + 1
        self.register_buffer('similarity',
                             torch.zeros((num_classes, num_classes)))
        self.register_buffer('counts',
                             torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer(
            'table', torch.zeros((size, size)), persistent=False)
        # On the host: a look at the counts would wait for the device.
        self._ready = False

    @property
    def has_statistics(self) -> bool:
        """bool: Whether similarities and counts are known."""
        if not self._ready and bool(self.counts.any()):
            # Somebody copied the buffers, as averages of models do.
            self._fill_table()
        return self._ready

    @torch.no_grad()
    def set_statistics(self, similarity: Tensor, counts: Tensor) -> None:
        """Take over similarities and counts of the classes.

        Args:
            similarity (Tensor): Cosines (C, C) between the classes, such as
                :meth:`ClassPrototypes.similarity`.
            counts (Tensor): Labelled instances (C,) of each class.

        Raises:
            ValueError: If a shape is wrong, a similarity is no number, or no
                class has instances.
        """
        number = self.num_classes
        if similarity.shape != (number, number) or counts.shape != (number, ):
            raise ValueError(
                f'SimilarityLabelSmoothing.num_classes={number}, but '
                f'similarities of shape {tuple(similarity.shape)} and counts '
                f'of shape {tuple(counts.shape)} are set; they must be '
                f'({number}, {number}) and ({number},).')
        if not bool(similarity.isfinite().all()):
            raise ValueError('A similarity between classes is no number: the '
                             'features that it came from are not.')
        if not bool((counts >= 0).all()) or not bool(counts.any()):
            raise ValueError('SimilarityLabelSmoothing needs instances of at '
                             'least one class; the counts are '
                             f'{counts[:10].tolist()} ...')
        self.similarity.copy_(similarity)
        self.counts.copy_(counts)
        self._fill_table()

    def forward(self, label: Tensor) -> Tensor:
        """Return the targets of labels.

        Args:
            label (Tensor): int64 of any shape, C for background.

        Returns:
            Tensor: float32 of shape (..., C + 1); rows sum to 1.

        Raises:
            RuntimeError: If the statistics are not known.
        """
        if not self._ready and not self.has_statistics:
            raise RuntimeError(
                'SimilarityLabelSmoothing does not know the similarities of '
                "the classes. Add dict(type='mmsemi.ClassPrototypeHook') to "
                'custom_hooks, load a checkpoint that has them, or call '
                'set_statistics().')
        return self.table[label]

    def strength(self) -> Tensor:
        """Return the strength eps of each class, (C,) float64."""
        counts = self.counts.cpu()
        if self.concave is not None:
            return concave_strength(counts, *self.concave)
        return power_strength(counts, **self.power)

    def neighbours(self) -> Tensor:
        """Return pi, (C, C) float64; see :func:`neighbour_distribution`."""
        return neighbour_distribution(self.similarity.cpu(),
                                      self.counts.cpu(), self.kernel,
                                      self.temperature, self.topk)

    @torch.no_grad()
    def _fill_table(self) -> None:
        # In double precision on the host, so that a resumed training gets
        # the same bits.
        neighbours = self.neighbours()
        # A single class has nobody to give to.
        strength = (self.strength() * neighbours.sum(1).round())[:, None]
        table = torch.eye(self.num_classes + 1, dtype=torch.float64)
        table[:-1, :-1] *= 1 - strength
        table[:-1, :-1] += strength * neighbours
        self.table.copy_(table)
        self._ready = True

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = False
        if bool(self.counts.any()):
            self._fill_table()

    def extra_repr(self) -> str:
        """Return the settings."""
        strength = self.power if self.concave is None else dict(
            concave=self.concave)
        listed = ', '.join(f'{key}={value}' for key, value in strength.items())
        return (f'num_classes={self.num_classes}, kernel={self.kernel!r}, '
                f'temperature={self.temperature}, topk={self.topk}, {listed}')


def _check(right: bool, field: str, value: object, allowed: str) -> None:
    if not right:
        raise ValueError(f'SimilarityLabelSmoothing.{field}={value!r}; '
                         f'allowed are {allowed}.')
