# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Expressions that tell one digit of a scene from the others."""
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from .digit_scenes import DIGIT_CLASSES, DigitScene

COLOURS = dict(
    red=(230, 50, 45),
    green=(60, 200, 70),
    blue=(70, 115, 250),
    yellow=(240, 220, 60),
    purple=(175, 75, 225),
    white=(240, 240, 240))
# Shares of the scene's height. What lies between is neither big nor small.
BIG_FROM, SMALL_TO = 0.33, 0.28
# Shares of the scene. A digit between is on neither side.
NEAR_SIDE, OFF_SIDE = 0.42, 0.54
# Least difference of places, as a share of the scene, and least ratio of
# heights, for one digit to come before another.
PLACE_GAP, HEIGHT_RATIO = 0.0625, 1.2

ORDINALS = ('first', 'second', 'third', 'fourth', 'fifth')
# Words, axis (0 from left to right, 1 from top to bottom) and whether the
# axis is followed backwards.
SIDES = {
    'left': ('on the left', 'leftmost', 0, False),
    'right': ('on the right', 'rightmost', 0, True),
    'top': ('at the top', 'topmost', 1, False),
    'bottom': ('at the bottom', 'bottommost', 1, True)
}
SIZES = ('big', 'small')
SIZE_EXTREMES = dict(biggest=True, smallest=False)

#: Every word of the expressions, in alphabetical order.
DIGIT_WORDS = tuple(
    sorted({
        'at', 'digit', 'from', 'on', 'the', *DIGIT_CLASSES, *COLOURS,
        *ORDINALS, *SIZES, *SIZE_EXTREMES, *SIDES,
        *(extreme for _, extreme, _, _ in SIDES.values())
    }))


class Expression(NamedTuple):
    """A sentence that fits one digit of a scene only.

    Attributes:
        text: The sentence, of :data:`DIGIT_WORDS`.
        kind: What it goes by: 'class', 'colour', 'size', 'side', 'extreme'
            or 'order'.
    """
    text: str
    kind: str


class _Digit(NamedTuple):
    """What expressions say of a digit; places are shares of the scene."""
    name: str
    colour: str
    place: Tuple[float, float]
    height: float


def describe_digits(scene: DigitScene) -> List[List[Expression]]:
    """List the expressions of every digit.

    An expression is listed if its digit clearly fits it and every other
    digit clearly does not: heights and places of visible pixels' boxes have
    to differ by a margin. Words such as 'leftmost' and 'second' need two
    digits at least that the rest of the expression fits.

    Args:
        scene (DigitScene): Scene whose digits have named colours.

    Returns:
        list[list[Expression]]: For each digit, different ones.

    Raises:
        ValueError: If the colours are not named.
    """
    if len(scene.colors) != len(scene.labels):
        raise ValueError(
            f'{len(scene.labels)} digits have {len(scene.colors)} names of '
            'colours; only scenes of ReferringSceneComposer are described.')
    digits = _digits_of(scene)
    found: List[Dict[str, Expression]] = [{} for _ in digits]
    for phrase, members in _groups(digits):
        for target, text, kind in _of_group(phrase, members, digits):
            found[target].setdefault(text, Expression(text, kind))
    return [list(expressions.values()) for expressions in found]


def draw_sentences(expressions: Sequence[Expression], number: int,
                   rng: np.random.Generator) -> List[str]:
    """Draw sentences of one digit, of as many kinds as there are.

    Args:
        expressions (Sequence[Expression]): From :func:`describe_digits`.
        number (int): How many; fewer come if there are no more.
        rng (np.random.Generator): Source of the draws.

    Returns:
        list[str]: Different sentences.
    """
    by_kind: Dict[str, List[str]] = {}
    for index in rng.permutation(len(expressions)):
        expression = expressions[index]
        by_kind.setdefault(expression.kind, []).append(expression.text)
    # Kinds in a drawn order of their own: most expressions are of few kinds.
    kinds = sorted(by_kind)
    queues = [by_kind[kinds[i]] for i in rng.permutation(len(kinds))]
    drawn = []
    while any(queues) and len(drawn) < number:
        drawn += [queue.pop() for queue in queues if queue]
    return drawn[:number]


def _digits_of(scene: DigitScene) -> List[_Digit]:
    height, width = scene.image.shape[:2]
    digits = []
    for mask, label, colour in zip(scene.masks, scene.labels, scene.colors):
        rows, = np.nonzero(mask.any(axis=1))
        columns, = np.nonzero(mask.any(axis=0))
        # Box edges, so that the centre of a box of one pixel is at its half.
        top, bottom = rows[0], rows[-1] + 1
        left, right = columns[0], columns[-1] + 1
        digits.append(
            _Digit(DIGIT_CLASSES[label], colour,
                   ((left + right) / 2 / width, (top + bottom) / 2 / height),
                   (bottom - top) / height))
    return digits


def _groups(digits: Sequence[_Digit]) -> Iterator[Tuple[str, List[int]]]:
    """Yield phrases such as 'red seven' and the digits they fit."""
    names = sorted({digit.name for digit in digits})
    colours = sorted({digit.colour for digit in digits})
    for colour in [None] + colours:
        for name in [None] + names:
            members = [
                i for i, digit in enumerate(digits)
                if name in (None, digit.name) and colour in (None,
                                                             digit.colour)
            ]
            if members:
                words = [colour, name or 'digit']
                yield ' '.join(filter(None, words)), members


def _of_group(phrase: str, members: List[int], digits: Sequence[_Digit]
              ) -> Iterator[Tuple[int, str, str]]:
    """Yield target, sentence and kind of what fits one member only."""
    if len(members) == 1:
        kind = 'class' if phrase in DIGIT_CLASSES else 'colour'
        yield members[0], f'the {phrase}', kind
    heights = {i: digits[i].height for i in members}
    for size, other in (SIZES, SIZES[::-1]):
        fits = [i for i in members if _is_size(heights[i], size)]
        if len(fits) == 1 and all(
                _is_size(heights[i], other) for i in members if i != fits[0]):
            yield fits[0], f'the {size} {phrase}', 'size'
    if len(members) > 1:
        for word, largest in SIZE_EXTREMES.items():
            ordered = sorted(members, key=heights.get, reverse=largest)
            near, far = sorted((heights[ordered[0]], heights[ordered[1]]))
            if far >= HEIGHT_RATIO * near:
                yield ordered[0], f'the {word} {phrase}', 'size'
    for side, (where, extreme, axis, backwards) in SIDES.items():
        places = {
            i: 1 - digits[i].place[axis] if backwards else
            digits[i].place[axis]
            for i in members
        }
        ordered = sorted(members, key=places.get)
        first = ordered[0]
        if places[first] <= NEAR_SIDE and all(places[i] >= OFF_SIDE
                                              for i in ordered[1:]):
            yield first, f'the {phrase} {where}', 'side'
        gaps = [
            places[after] - places[before] >= PLACE_GAP
            for before, after in zip(ordered, ordered[1:])
        ]
        if gaps and gaps[0]:
            yield first, f'the {extreme} {phrase}', 'extreme'
        if gaps and all(gaps):
            for ordinal, target in zip(ORDINALS, ordered):
                yield (target, f'the {ordinal} {phrase} from the {side}',
                       'order')


def _is_size(height: float, size: str) -> bool:
    return height >= BIG_FROM if size == 'big' else height <= SMALL_TO
