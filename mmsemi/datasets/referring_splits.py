# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Labelled and unlabelled images of referring expressions.

Splits are by image: all refs of an image are labelled, or none is.
"""
import math
import random
from typing import Dict, List, Tuple

from .semantic_sampling import split_by_classes

SCHEMES = ('semires', 'seeded')


def split_referring(data: dict,
                    percent: float,
                    seed: int = 0,
                    fold: int = 0,
                    scheme: str = 'semires',
                    split: str = 'train') -> Tuple[List[str], List[str]]:
    """Choose ``percent`` of the images as the labelled part.

    ``scheme='semires'`` is the procedure of SemiRES (ICML 2024, arXiv
    2406.01451; the paper does not say it, its released code and Figure 6
    do): the images in order of their first ref in the file, of which
    ``floor(percent / 100 * num_images)`` are drawn by Python's
    ``random.sample`` after ``random.seed(0)``: 169 of RefCOCO's (unc) 16,994
    at 1 %. Parts of different size do not hold each other.

    ``scheme='seeded'`` draws as :func:`mmsemi.datasets.split_coco` does,
    ``round(percent / 100 * num_images)`` images: the order in the file plays
    no role, and with the same seed and fold a larger part holds a smaller
    one.

    Args:
        data (dict): Annotation as in :mod:`mmsemi.datasets.refer_files`.
        percent (float): Share of labelled images, in percent, more than 0
            and at most 100.
        seed (int): Seed. The published splits are of seed 0. Defaults to 0.
        fold (int): Number of the draw of ``scheme='seeded'``. Defaults
            to 0.
        scheme (str): 'semires' or 'seeded'. Defaults to 'semires'.
        split (str): Split whose images are divided. Defaults to 'train'.

    Returns:
        tuple[list[str], list[str]]: File names of the labelled and of the
        unlabelled images, in order of first appearance ('semires') or
        sorted ('seeded').

    Raises:
        ValueError: If percent is out of range or labels no image, or if
            another argument is not as above.
    """
    if scheme not in SCHEMES:
        raise ValueError(f'scheme must be one of {SCHEMES}, got {scheme!r}.')
    classes = classes_by_image(data, split)
    if scheme == 'seeded':
        return split_by_classes(
            classes, percent, seed=seed, fold=fold, keep_all_classes=False)
    if fold != 0:
        raise ValueError(f'scheme="semires" has no fold but its seed; got '
                         f'fold={fold}.')
    if not 0 < percent <= 100:
        raise ValueError('percent must be more than 0 and at most 100, got '
                         f'{percent}.')
    names = list(classes)
    count = math.floor(percent / 100 * len(names))
    if count == 0:
        raise ValueError(
            f'percent={percent} of {len(names)} images is less than one '
            f'image; {100 / len(names):g} percent is one.')
    chosen = set(random.Random(seed).sample(names, count))
    return ([name for name in names if name in chosen],
            [name for name in names if name not in chosen])


def classes_by_image(data: dict, split: str = 'train') -> Dict[str, List[int]]:
    """List the images of a split, with the categories of their refs.

    Args:
        data (dict): Annotation as in :mod:`mmsemi.datasets.refer_files`.
        split (str): Name of the split. Defaults to 'train'.

    Returns:
        dict[str, list[int]]: Categories by file name, in order of the
        images' first refs.

    Raises:
        ValueError: If no ref is of the split.
    """
    names = {image['image_id']: image['file_name'] for image in data['images']}
    categories = {
        ann['ann_id']: ann['category_id']
        for ann in data['annotations']
    }
    classes: Dict[str, List[int]] = {}
    for ref in data['refs']:
        if ref['split'] == split:
            found = classes.setdefault(names[ref['image_id']], [])
            if categories[ref['ann_id']] not in found:
                found.append(categories[ref['ann_id']])
    if not classes:
        splits = sorted({ref['split'] for ref in data['refs']})
        raise ValueError(f'The split {split!r} has no ref; splits are '
                         f'{splits}.')
    return classes
