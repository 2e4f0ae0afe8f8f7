# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""GIST and RIST: which labels each stage of self-training learns from.

Teh et al., The GIST and RIST of Iterative Self-Training for Semi-Supervised
Segmentation, CRV 2022 (arXiv 2103.17105). From the abstract: a fixed mix of
human and pseudo-labels gets worse over the iterations; a stage that learns
from one of the two only does not. GIST chooses greedily, RIST at random.

No code of the authors was found. Not known are the length of a stage, its
learning rate, the width of the beam and whether weights start anew; all are
fields of ``mmsemi.IterativeSelfTrainingLoop``. The greedy choice here looks
at a held-out slice of the labelled images, never at the validation set.
"""
from dataclasses import asdict, dataclass
from typing import List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from .self_training import check_fraction

SCHEDULES = ('fixed', 'greedy', 'random')
HUMAN, PSEUDO, MIXED = 'human', 'pseudo', 'mixed'
# Words of the seeds, so that slice and choices are independent.
SLICE_STREAM, CHOICE_STREAM = 1, 2


class Unit(NamedTuple):
    """One training: of ``stage``, from beam entry ``entry``, on ``source``.

    Stage 0 is the training on human labels that all others start from.
    """
    stage: int
    entry: int
    source: str


@dataclass(frozen=True)
class Candidate:
    """A solution: weights and pseudo-labels, by the units they came from.

    Args:
        unit (int): Number of the unit that trained the weights.
        labels (int): Number of the unit whose weights made the
            pseudo-labels.
        history (tuple[str, ...]): Sources of its stages.
        score (float, optional): Mean IoU on the held-out slice.
    """
    unit: int
    labels: int
    history: Tuple[str, ...] = ()
    score: Optional[float] = None

    def to_dict(self) -> dict:
        """Return plain values, for a checkpoint."""
        return {**asdict(self), 'history': list(self.history)}

    @classmethod
    def from_dict(cls, values: dict) -> 'Candidate':
        """Undo :meth:`to_dict`."""
        return cls(**{**values, 'history': tuple(values['history'])})


def plan_units(schedule: str,
               stages: int,
               beam: int = 1,
               choices: Sequence[str] = ()) -> List[Unit]:
    """List the trainings of all stages.

    Args:
        schedule (str): 'fixed' mixes both labels in every stage (FIST),
            'greedy' tries both from every beam entry (GIST), 'random'
            follows ``choices`` (RIST).
        stages (int): Number of stages after the first training.
        beam (int): Beam entries K that 'greedy' keeps. Defaults to 1.
        choices (Sequence[str]): Source of every stage, of 'random' only.

    Returns:
        list[Unit]: In the order of training. 'greedy' has 2 min(K, 2^(s-1))
        units in stage s, the others one.
    """
    units = [Unit(0, 0, HUMAN)]
    entries = 1
    for stage in range(1, stages + 1):
        if schedule == 'greedy':
            units += [
                Unit(stage, entry, source) for entry in range(entries)
                for source in (HUMAN, PSEUDO)
            ]
            entries = min(beam, 2 * entries)
        elif schedule == 'random':
            units.append(Unit(stage, 0, choices[stage - 1]))
        else:
            units.append(Unit(stage, 0, MIXED))
    return units


def random_choices(stages: int,
                   seed: int,
                   human_prob: float = 0.5) -> List[str]:
    """Draw the source of every stage (RIST).

    Args:
        stages (int): Number of stages.
        seed (int): Seed, at least 0 and below 2**32.
        human_prob (float): Probability of human labels. Defaults to 0.5.

    Returns:
        list[str]: 'human' or 'pseudo' per stage. More stages of the same
        seed begin with the same choices.
    """
    draws = np.random.RandomState([seed, CHOICE_STREAM]).random_sample(stages)
    return [HUMAN if draw < human_prob else PSEUDO for draw in draws]


def keep_best(candidates: Sequence[Candidate], beam: int) -> List[Candidate]:
    """Return the candidates with the highest scores, best first.

    Args:
        candidates (Sequence[Candidate]): All of a stage.
        beam (int): How many are kept.

    Returns:
        list[Candidate]: At most ``beam``; of equals the earlier come first.
    """
    return sorted(
        candidates, key=lambda candidate: -candidate.score)[:beam]


def held_out_size(num_images: int, fraction: float) -> int:
    """Return the number of held-out images.

    Args:
        num_images (int): Number of labelled images.
        fraction (float): Share of them, in (0, 1).

    Returns:
        int: Rounded to the nearest, halves to the even number.

    Raises:
        ValueError: If that leaves no image on one side.
    """
    check_fraction(fraction, 'train_cfg.held_out_fraction')
    count = round(num_images * fraction)
    if not 0 < count < num_images:
        raise ValueError(
            f'train_cfg.held_out_fraction={fraction} of {num_images} '
            f'labelled images are {count}; schedule="greedy" needs at least '
            '1 to choose by and 1 to train on.')
    return count


def held_out_slice(classes: Sequence[Set[int]], fraction: float,
                   seed: int) -> List[int]:
    """Draw labelled images that are kept from training.

    Images come in a seeded order. First those are taken that bring a class
    which the slice does not have yet, then any; one whose class would then
    be missing from training is taken only if there is no other.

    Args:
        classes (Sequence[set[int]]): Classes of every labelled image.
        fraction (float): Share of the held-out images, in (0, 1).
        seed (int): Seed, at least 0 and below 2**32.

    Returns:
        list[int]: Indices, ascending.

    Raises:
        ValueError: See :func:`held_out_size`.
    """
    size = held_out_size(len(classes), fraction)
    order = np.random.RandomState([seed, SLICE_STREAM]).permutation(
        len(classes)).tolist()
    left = {}
    for found in classes:
        for label in found:
            left[label] = left.get(label, 0) + 1
    taken, covered = [], set()

    def spare(index: int) -> bool:
        return all(left[label] > 1 for label in classes[index])

    rules = (lambda i: spare(i) and classes[i] - covered, spare,
             lambda i: True)
    for rule in rules:
        for index in order:
            if len(taken) < size and index not in taken and rule(index):
                taken.append(index)
                covered |= classes[index]
                for label in classes[index]:
                    left[label] -= 1
    return sorted(taken)
