# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""How much the unsupervised loss counts as training goes on."""
import math
from dataclasses import dataclass
from typing import Mapping, Union

RAMPS = ('constant', 'linear', 'sigmoid')


def check_weight(value: float, field: str) -> None:
    """Raise ValueError unless ``value`` is a finite number from 0."""
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f'{field}={value!r}; allowed are finite numbers '
                         'from 0.')


def check_steps(value: int, field: str) -> None:
    """Raise ValueError unless ``value`` is a whole number from 0."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f'{field}={value!r}; allowed are whole numbers '
                         'from 0.')


@dataclass(frozen=True)
class WeightSchedule:
    """A loss weight as a function of the optimizer step.

    The weight is 0 before ``begin``, follows the ramp for ``ramp_steps``
    steps and is ``weight`` from then on. The sigmoid ramp is
    ``exp(-5 (1 - t)^2)`` with t from 0 to 1 (Laine and Aila, Temporal
    Ensembling, ICLR 2017, section 2.2 and appendix).

    Args:
        weight (float): Final weight, not negative. Defaults to 1.
        ramp (str): 'constant', 'linear' or 'sigmoid'. Defaults to
            'constant', which takes no ``ramp_steps``.
        begin (int): Optimizer step at which the weight starts, counted from
            the end of the burn-in. Defaults to 0.
        ramp_steps (int): Length of the ramp in optimizer steps. Defaults
            to 0.

    Raises:
        ValueError: If an argument is out of range, or ``ramp`` and
            ``ramp_steps`` do not fit.
    """

    weight: float = 1.
    ramp: str = 'constant'
    begin: int = 0
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        check_weight(self.weight, 'unsup_weight.weight')
        if self.ramp not in RAMPS:
            raise ValueError(f'unsup_weight.ramp={self.ramp!r}; allowed are '
                             f'{RAMPS}.')
        check_steps(self.begin, 'unsup_weight.begin')
        check_steps(self.ramp_steps, 'unsup_weight.ramp_steps')
        if (self.ramp == 'constant') != (self.ramp_steps == 0):
            raise ValueError(
                f'unsup_weight has ramp={self.ramp!r} with ramp_steps='
                f'{self.ramp_steps}; a constant weight takes 0 ramp steps, '
                'a ramp at least 1.')

    @classmethod
    def from_config(
            cls, config: Union[float, Mapping,
                               'WeightSchedule']) -> 'WeightSchedule':
        """Build from a number, a dict of arguments or a schedule."""
        if isinstance(config, WeightSchedule):
            return config
        if isinstance(config, Mapping):
            unknown = set(config) - set(cls.__dataclass_fields__)
            if unknown:
                raise ValueError(
                    f'unsup_weight has unknown keys {sorted(unknown)}; '
                    f'allowed are {sorted(cls.__dataclass_fields__)}.')
            return cls(**config)
        check_weight(config, 'unsup_weight')
        return cls(weight=float(config))

    def __call__(self, step: int) -> float:
        """Return the weight at an optimizer step (counted from 0)."""
        if step < self.begin:
            return 0.
        if step >= self.begin + self.ramp_steps:
            return self.weight
        t = (step - self.begin) / self.ramp_steps
        if self.ramp == 'linear':
            return self.weight * t
        return self.weight * math.exp(-5 * (1 - t)**2)
