# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""How a teacher follows its student."""
from dataclasses import dataclass
from typing import Mapping, Optional

from .weight_schedule import check_steps, check_weight


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher comes to its weights.

    Args:
        mode (str): 'ema' (follows the student), 'frozen' (keeps what was
            loaded) or 'student' (there is no teacher: the student labels for
            itself). Defaults to 'ema'.
        momentum (float): Share of the student in one update, in (0, 1];
            teacher = (1 - momentum) * teacher + momentum * student, as in
            mmengine. Defaults to 0.001.
        warm_up_gamma (float): The k-th update uses at least
            gamma / (gamma + k), so that the teacher forgets its start. 1 is
            the rule of Mean Teacher, 0 turns it off. Defaults to 1.
        burn_in_steps (int): Optimizer steps in which the student learns from
            labels alone. Defaults to 0.
        average_burn_in (bool): Whether the teacher follows the student by
            EMA during the burn-in as well. If not, it becomes a copy of the
            student at its end. Defaults to False.
        checkpoint (str, optional): Checkpoint for the teacher alone, of a
            plain segmenter or of a semi-supervised one, whose teacher is
            taken. Read by :meth:`TeacherStudent.init_weights`, before a
            resume, too. With mode 'ema' set ``guided_steps``, or
            ``warm_up_gamma=0``, or the first updates replace it. Defaults
            to None.
        guided_steps (int): Guided burn-in (T. Berrada et al., WACV 2024):
            optimizer steps in which the teacher keeps the weights of
            ``checkpoint`` while the student learns from labels and from the
            teacher's pseudo-labels. Then the teacher becomes a copy of the
            student and follows it. Takes the place of ``burn_in_steps``, but
            schedules of weights start with it, not after it. Defaults to 0.

    Raises:
        ValueError: If an argument is out of range, the copy at the end of
            the burn-in would overwrite ``checkpoint``, or a guided burn-in
            lacks it.
    """

    mode: str = 'ema'
    momentum: float = 0.001
    warm_up_gamma: float = 1.
    burn_in_steps: int = 0
    average_burn_in: bool = False
    checkpoint: Optional[str] = None
    guided_steps: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ('ema', 'frozen', 'student'):
            raise ValueError(f"teacher.mode={self.mode!r}; allowed are 'ema'"
                             ", 'frozen' and 'student'.")
        if self.mode == 'student' and self.checkpoint is not None:
            raise ValueError(
                f'teacher.checkpoint={self.checkpoint!r} has no effect: with '
                "teacher.mode='student' the student labels for itself.")
        if not isinstance(self.momentum, (int, float)) or \
                not 0 < self.momentum <= 1:
            raise ValueError(
                f'teacher.momentum={self.momentum!r}; allowed are numbers '
                'above 0 up to 1. It is the share of the student in one '
                'update: an EMA decay of 0.999 is momentum=0.001.')
        check_weight(self.warm_up_gamma, 'teacher.warm_up_gamma')
        check_steps(self.burn_in_steps, 'teacher.burn_in_steps')
        check_steps(self.guided_steps, 'teacher.guided_steps')
        if self.guided_steps > 0:
            self._check_guided()
        if self.checkpoint is not None and self.copies_after_burn_in:
            raise ValueError(
                f'teacher.checkpoint={self.checkpoint!r} has no effect: with '
                f'burn_in_steps={self.burn_in_steps} the teacher becomes a '
                "copy of the student. Set burn_in_steps=0, mode='frozen' or "
                'average_burn_in=True, or guided_steps in the place of '
                'burn_in_steps.')

    def _check_guided(self) -> None:
        field = f'teacher.guided_steps={self.guided_steps}'
        if self.mode != 'ema':
            raise ValueError(
                f"{field} needs teacher.mode='ema', got {self.mode!r}: after "
                'these steps the teacher follows the student.')
        if self.burn_in_steps > 0 or self.average_burn_in:
            raise ValueError(
                f'{field} is a burn-in of its own; with it only '
                'burn_in_steps=0 and average_burn_in=False are allowed, got '
                f'{self.burn_in_steps} and {self.average_burn_in}.')
        if not self.checkpoint:
            raise ValueError(
                f'{field} needs a trained teacher: set teacher.checkpoint to '
                'a checkpoint of the same segmenter trained on the labelled '
                'images, or guided_steps=0.')

    @property
    def copies_after_burn_in(self) -> bool:
        """bool: Whether the teacher starts as the burnt-in student."""
        return (self.mode == 'ema' and self.burn_in_steps > 0
                and not self.average_burn_in)

    @classmethod
    def from_config(cls, config: Optional[Mapping]) -> 'TeacherSettings':
        """Build from a dict of arguments; None gives the defaults."""
        if not isinstance(config, (Mapping, type(None))):
            raise ValueError(f'teacher={config!r}; it must be a dict with '
                             f'keys of {sorted(cls.__dataclass_fields__)}.')
        config = dict(config or {})
        unknown = set(config) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f'teacher has unknown keys {sorted(unknown)}; allowed are '
                f'{sorted(cls.__dataclass_fields__)}.')
        return cls(**config)

    def momentum_at(self, update: int) -> float:
        """Return the momentum of the k-th update, k counted from 1."""
        if self.warm_up_gamma == 0:
            return self.momentum
        gamma = self.warm_up_gamma
        return max(self.momentum, gamma / (gamma + update))
