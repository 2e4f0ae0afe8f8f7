# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Digit scenes with referring expressions, of the embedded data."""
from typing import Dict, List, Mapping, Tuple

import numpy as np

from .digit_expressions import COLOURS, describe_digits, draw_sentences
from .digit_scenes import (DIGIT_CLASSES, DigitScene, DigitSceneComposer,
                           check_int)

REFERRING_FILE = 'annotations/referring.json'
# Heights of small and of big digits as shares of the scene.
SMALL_HEIGHTS, BIG_HEIGHTS = (0.2, 0.26), (0.36, 0.46)
MIN_IMAGE_SIZE = 48
# How often a digit repeats the class or the colour of an earlier one, so that
# neither alone is enough.
REPEAT_SHARE = 0.5
SENTENCES_PER_REF = (2, 3)


class ReferringSceneComposer(DigitSceneComposer):
    """Composes scenes whose digits have named colours and two sizes.

    They differ from other digit scenes in four ways: the background is half
    as bright, so that blue and red stand out; a digit is either small
    (0.20 - 0.26 of the scene's height) or big (0.36 - 0.46); its colour is
    one of :data:`COLOURS`, slightly varied; and every second digit repeats
    the class of an earlier one, as every second repeats a colour.

    Args:
        split (str): 'train' or 'val', the handwriting to use.
        image_size (int): Height and width of a scene in pixels, at least 48.
            Defaults to 64.
        digits_per_scene (tuple[int, int]): Least, at least 2, and most, at
            most 5, digits in a scene. Defaults to (2, 4).
        max_overlap (float): See :class:`DigitSceneComposer`. Defaults
            to 0.1.

    Raises:
        ValueError: If a value is out of its range.
    """

    def __init__(self,
                 split: str,
                 image_size: int = 64,
                 digits_per_scene: Tuple[int, int] = (2, 4),
                 max_overlap: float = 0.1) -> None:
        super().__init__(
            split,
            image_size=image_size,
            digits_per_scene=digits_per_scene,
            max_overlap=max_overlap)
        check_int('image_size', image_size, MIN_IMAGE_SIZE)
        low, high = self.digits_per_scene
        if low < 2 or high > 5:
            raise ValueError(
                'digits_per_scene must lie within 2 and 5 for referring '
                f'expressions, got {tuple(digits_per_scene)}')
        self._names: List[str] = []

    def compose(self, rng: np.random.Generator) -> DigitScene:
        """Compose one scene in which a digit at least can be described.

        Args:
            rng (np.random.Generator): Source of every draw.

        Returns:
            DigitScene: Image, masks, labels and colours.

        Raises:
            RuntimeError: If the digits find no place in 200 layouts, or no
                digit of 50 scenes can be described.
        """
        for _ in range(50):
            self._names = []
            scene = super().compose(rng)._replace(colors=tuple(self._names))
            # With too much hidden, a digit has no box.
            if scene.masks.any(axis=(1, 2)).all() and any(
                    len(found) >= SENTENCES_PER_REF[0]
                    for found in describe_digits(scene)):
                return scene
        raise RuntimeError('No digit of 50 scenes can be described; lower '
                           'max_overlap')

    def _labels(self, number: int, rng: np.random.Generator) -> np.ndarray:
        labels: List[int] = []
        for _ in range(number):
            if labels and rng.random() < REPEAT_SHARE:
                labels.append(labels[int(rng.integers(len(labels)))])
            else:
                labels.append(int(rng.integers(len(DIGIT_CLASSES))))
        return np.array(labels)

    def _height(self, rng: np.random.Generator) -> float:
        shares = BIG_HEIGHTS if rng.random() < 0.5 else SMALL_HEIGHTS
        return rng.uniform(*shares) * self.image_size

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        return super()._background(rng) / 2

    def _colour(self, index: int, background: np.ndarray,
                rng: np.random.Generator) -> np.ndarray:
        names = tuple(COLOURS)
        if index and rng.random() < REPEAT_SHARE:
            names = self._names
        name = names[int(rng.integers(len(names)))]
        self._names.append(name)
        varied = np.array(COLOURS[name]) + rng.uniform(-15, 15, 3)
        return np.clip(varied, 0, 255)


def describe_scene(scene: DigitScene,
                   rng: np.random.Generator) -> List[List[str]]:
    """Draw two or three sentences for every digit that has so many.

    Args:
        scene (DigitScene): Scene of :class:`ReferringSceneComposer`.
        rng (np.random.Generator): Source of the draws.

    Returns:
        list[list[str]]: Sentences of each digit; none where fewer than two
        fit that digit only.
    """
    low, high = SENTENCES_PER_REF
    drawn = [
        draw_sentences(found, int(rng.integers(low, high + 1)), rng)
        for found in describe_digits(scene)
    ]
    return [found if len(found) >= low else [] for found in drawn]


def referring_annotations(
        parts: Mapping[str, dict],
        sentences: Mapping[str, Mapping[int, List[str]]]) -> dict:
    """Bring instances and sentences into one annotation of expressions.

    Ids count on from one part to the next, and file names start with the
    part's folder.

    Args:
        parts (Mapping[str, dict]): Instances in COCO's format by split.
        sentences (Mapping[str, Mapping[int, list[str]]]): Sentences by the
            annotation's id, by split.

    Returns:
        dict: Annotations as in :mod:`mmsemi.datasets.refer_files`.
    """
    out: Dict[str, list] = dict(images=[], annotations=[], refs=[])
    sent_id = 0
    for split, coco in parts.items():
        first_image, first_ann = (len(out[key])
                                  for key in ('images', 'annotations'))
        for image in coco['images']:
            out['images'].append(
                dict(
                    image_id=first_image + image['id'],
                    file_name=f'{split}/{image["file_name"]}',
                    height=image['height'],
                    width=image['width']))
        for ann in coco['annotations']:
            entry = dict(
                ann_id=first_ann + ann['id'],
                image_id=first_image + ann['image_id'],
                **{
                    key: ann[key]
                    for key in ('category_id', 'segmentation', 'bbox', 'area')
                })
            out['annotations'].append(entry)
            texts = sentences[split].get(ann['id'])
            if not texts:
                continue
            out['refs'].append(
                dict(
                    ref_id=len(out['refs']) + 1,
                    ann_id=entry['ann_id'],
                    image_id=entry['image_id'],
                    split=split,
                    sentences=[
                        dict(
                            sent_id=sent_id + i,
                            raw=f'{text.capitalize()}.',
                            sent=text) for i, text in enumerate(texts, 1)
                    ]))
            sent_id += len(texts)
    return dict(version=1, dataset='digits', partition='generated', **out)
