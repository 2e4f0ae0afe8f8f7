# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Split a COCO-format data set into a labelled and an unlabelled part."""
import heapq
import math
import numbers
from collections import Counter, defaultdict
from typing import List, Optional, Tuple

import numpy as np

from .coco_files import (check_coco, check_no_leak, file_name, load_coco,
                         write_split)

__all__ = [
    'check_coco', 'check_no_leak', 'load_coco', 'split_coco',
    'split_coco_k_shot', 'split_stem', 'write_split'
]

SCHEMES = ('seeded', 'mmdet')


def split_coco(coco: dict,
               percent: float,
               seed: int = 0,
               fold: int = 0,
               keep_all_classes: bool = True,
               keep_hidden_labels: bool = False,
               scheme: str = 'seeded') -> Tuple[dict, dict]:
    """Choose ``percent`` of the images as the labelled part.

    ``scheme='seeded'`` draws a permutation of the images from (seed, fold)
    and labels its first ``round(percent / 100 * num_images)`` images: a
    larger percentage of the same seed and fold holds the smaller one, save
    for images swapped to keep a class. The order of images in the file
    plays no role.

    ``scheme='mmdet'`` chooses the images that mmdet's
    ``tools/misc/split_coco.py`` chooses for this fold. That tool draws with
    replacement, so it labels fewer images than asked (9.5 % for 10), and
    it keeps no class on purpose; ``keep_all_classes`` has no effect then.

    Args:
        coco (dict): Data set in COCO format. It is not changed; the parts
            share its image and annotation entries.
        percent (float): Share of labelled images, in percent, more than 0
            and at most 100. Exactly 100 labels everything and leaves the
            unlabelled part without images; only ``scheme='seeded'``
            allows it.
        seed (int): Seed of ``scheme='seeded'``. Defaults to 0.
        fold (int): Number of the draw; folds are independent draws, not
            disjoint ones. It is the whole seed of ``scheme='mmdet'``.
            Defaults to 0.
        keep_all_classes (bool): Whether every class that the source has
            annotations of gets at least one in the labelled part. Images
            are swapped for that, so their number stays. Crowd and ignored
            annotations do not count. Defaults to True.
        keep_hidden_labels (bool): Whether the unlabelled part keeps its
            annotations, to measure pseudo-labels. Defaults to False.
        scheme (str): 'seeded' or 'mmdet'. Defaults to 'seeded'.

    Returns:
        tuple[dict, dict]: The labelled and the unlabelled part. Both keep
        the order of the source and all its other fields.

    Raises:
        ValueError: If the data set is inconsistent, if percent is out of
            range or would label no image or every image, or if the part is
            too small to hold every class.
    """
    check_coco(coco)
    _check_percent(percent)
    _check_int('seed', seed, 0)
    _check_int('fold', fold, 0)
    num = len(coco['images'])
    if scheme == 'mmdet':
        if seed != 0:
            raise ValueError(f'scheme="mmdet" has no seed but its fold; got '
                             f'seed={seed}. Set fold={seed} instead.')
        count = int(percent / 100. * num)
        _check_count(count, num, percent)
        draws = np.random.RandomState(fold).choice(num, size=count)
        chosen = set(draws.tolist())
        if len(chosen) == num:
            raise ValueError(f'percent={percent} labels all {num} images.')
    elif scheme == 'seeded':
        if percent == 100:
            chosen = set(range(num))
        else:
            count = math.floor(percent / 100 * num + 0.5)
            _check_count(count, num, percent)
            order = _image_order(coco, seed, fold)
            chosen = set(order[:count])
            if keep_all_classes:
                chosen = _keep_classes(coco, order, count, percent)
    else:
        raise ValueError(f'scheme must be one of {SCHEMES}, got {scheme!r}.')
    return divide_images(coco, chosen, keep_hidden_labels)


def split_coco_k_shot(coco: dict,
                      shots: int,
                      seed: int = 0,
                      fold: int = 0,
                      allow_fewer: bool = False,
                      keep_hidden_labels: bool = False) -> Tuple[dict, dict]:
    """Choose few images that hold ``shots`` instances of every class.

    The images are taken greedily, always the one that closes most of what
    is missing, and images that prove unnecessary are given back. Crowd and
    ignored annotations do not count as instances.

    Args:
        coco (dict): Data set in COCO format, not changed.
        shots (int): Least number of instances per class.
        seed (int): Seed that decides between equally good images.
            Defaults to 0.
        fold (int): Number of the draw. Defaults to 0.
        allow_fewer (bool): Whether a class with fewer instances in the
            whole source is fine with all of them. Defaults to False.
        keep_hidden_labels (bool): Whether the unlabelled part keeps its
            annotations. Defaults to False.

    Returns:
        tuple[dict, dict]: The labelled and the unlabelled part.

    Raises:
        ValueError: If the data set is inconsistent, if a class has too few
            instances, or if every image would be needed.
    """
    check_coco(coco)
    _check_int('shots', shots, 1)
    _check_int('seed', seed, 0)
    _check_int('fold', fold, 0)
    counts = instances_per_image(coco)
    total = sum(counts, Counter())
    used = {ann['category_id'] for ann in coco['annotations']}
    few = {c: total[c] for c in sorted(used) if total[c] < shots}
    if few and not allow_fewer:
        names = class_names(coco)
        listed = ', '.join(f'{names[c]} ({n})' for c, n in few.items())
        raise ValueError(
            f'shots={shots}, but these classes have fewer instances: '
            f'{listed}. Lower shots, or set allow_fewer=True to take all '
            'that there are.')
    need = {c: min(shots, total[c]) for c in used if total[c]}
    order = _image_order(coco, seed, fold)
    chosen = _cover(counts, need, order)
    if len(chosen) == len(counts):
        raise ValueError(f'shots={shots} needs all {len(counts)} images; '
                         'none is left for the unlabelled part.')
    return divide_images(coco, set(chosen), keep_hidden_labels)


def split_stem(ann_stem: str,
               percent: Optional[float] = None,
               shots: Optional[int] = None,
               seed: int = 0,
               fold: int = 0,
               scheme: str = 'seeded') -> str:
    """Return the file stem of a split.

    Args:
        ann_stem (str): Stem of the source, e.g. 'instances_train2017'.
        percent (float, optional): Percentage of the split.
        shots (int, optional): Shots, for a K-shot split instead.
        seed (int): Seed. Defaults to 0.
        fold (int): Fold. Defaults to 0.
        scheme (str): 'seeded' or 'mmdet'. Defaults to 'seeded'.

    Returns:
        str: 'instances_train2017.1@10' for the mmdet scheme, as mmdet's
        configs expect, 'instances_train2017.seed0-fold1@10' or
        'instances_train2017.seed0-fold1@5shot' otherwise.
    """
    if (percent is None) == (shots is None):
        raise ValueError('Give either percent or shots, got '
                         f'percent={percent} and shots={shots}.')
    if scheme == 'mmdet' and percent is not None:
        return f'{ann_stem}.{fold}@{percent:g}'
    part = f'{shots}shot' if percent is None else f'{percent:g}'
    return f'{ann_stem}.seed{seed}-fold{fold}@{part}'


def _check_percent(percent: float) -> None:
    if isinstance(percent, bool) or not isinstance(percent, numbers.Real):
        raise TypeError(f'percent must be a number, got {percent!r}.')
    if not 0 < percent <= 100:
        raise ValueError('percent must be more than 0 and at most 100, got '
                         f'{percent}.')


def _check_int(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f'{name} must be an int, got {value!r}.')
    if not least <= value < 2**32:
        raise ValueError(f'{name} must be at least {least} and below 2**32, '
                         f'got {value}.')


def _check_count(count: int, num: int, percent: float) -> None:
    if count == 0:
        raise ValueError(f'percent={percent} of {num} images is less than '
                         f'one image; {100 / num:g} percent is one.')
    if count >= num:
        raise ValueError(
            f'percent={percent} of {num} images labels all of them. For a '
            'fully labelled set say percent=100 with scheme="seeded".')


def class_names(coco: dict) -> dict:
    """Return the names of the classes by id; the id where there is none."""
    return {c['id']: c.get('name', str(c['id'])) for c in coco['categories']}


def _image_order(coco: dict, seed: int, fold: int) -> List[int]:
    """Return the positions of all images in a drawn order."""
    names = [file_name(img) for img in coco['images']]
    by_name = sorted(range(len(names)), key=names.__getitem__)
    # RandomState, because NumPy guarantees its streams for ever: a split
    # that was published must come out the same with any later NumPy.
    drawn = np.random.RandomState([seed, fold]).permutation(len(names))
    return [by_name[i] for i in drawn]


def instances_per_image(coco: dict) -> List[Counter]:
    """Count the instances a detector can learn from, per image.

    Args:
        coco (dict): Consistent data set in COCO format.

    Returns:
        list[Counter]: Instances by class id, of each image in the order of
        the file; crowd, ignored and empty annotations do not count.
    """
    position = {img['id']: i for i, img in enumerate(coco['images'])}
    counts: List[Counter] = [Counter() for _ in position]
    for ann in coco['annotations']:
        if ann.get('iscrowd') or ann.get('ignore') or ann.get('area') == 0:
            continue
        counts[position[ann['image_id']]][ann['category_id']] += 1
    return counts


def _keep_classes(coco: dict, order: List[int], count: int,
                  percent: float) -> set:
    """Swap images of ``order[:count]`` until every class is in."""
    counts = instances_per_image(coco)
    holders = defaultdict(list)
    for i in order:
        for c in counts[i]:
            holders[c].append(i)
    chosen = order[:count]
    have = Counter(c for i in chosen for c in counts[i])
    missing = {c for c in holders if not have[c]}
    removable = list(chosen)
    while missing:
        rarest = min(missing, key=lambda c: (len(holders[c]), c))
        # max takes the first of equals: the earliest in the drawn order.
        new = max(holders[rarest], key=lambda i: len(missing & set(counts[i])))
        while removable and any(have[c] < 2 for c in counts[removable[-1]]):
            removable.pop()
        if not removable:
            return _cover_and_fill(coco, counts, order, count, percent)
        old = removable.pop()
        chosen.remove(old)
        chosen.append(new)
        have.subtract(counts[old].keys())
        have.update(counts[new].keys())
        missing -= set(counts[new])
    return set(chosen)


def _cover_and_fill(coco: dict, counts: List[Counter], order: List[int],
                    count: int, percent: float) -> set:
    need = {c: 1 for per_image in counts for c in per_image}
    chosen = _cover(counts, need, order)
    if len(chosen) > count:
        raise ValueError(
            f'percent={percent} labels {count} of {len(counts)} images, too '
            f'few to hold all {len(need)} classes; {len(chosen)} images do. '
            'Raise percent or set keep_all_classes=False.')
    taken = set(chosen)
    rest = [i for i in order if i not in taken]
    return taken | set(rest[:count - len(chosen)])


def _cover(counts: List[Counter], need: dict, order: List[int]) -> List[int]:
    """Take images greedily until every class has what it needs."""
    have: Counter = Counter()

    def gain(i: int) -> int:
        return sum(
            min(n, max(0, need[c] - have[c])) for c, n in counts[i].items()
            if c in need)

    # A gain only shrinks while images are taken, so an old value is an
    # upper bound and only the top of the heap needs a new look.
    heap = [(-gain(i), place, i) for place, i in enumerate(order)]
    heapq.heapify(heap)
    chosen: List[int] = []
    while any(have[c] < n for c, n in need.items()):
        old, place, i = heapq.heappop(heap)
        now = gain(i)
        if now != -old:
            heapq.heappush(heap, (-now, place, i))
            continue
        chosen.append(i)
        have.update(counts[i])
    for i in reversed(list(chosen)):
        if all(have[c] - n >= need.get(c, 0) for c, n in counts[i].items()):
            chosen.remove(i)
            have.subtract(counts[i])
    return chosen


def divide_images(coco: dict,
                  chosen: set,
                  keep_hidden_labels: bool = True) -> Tuple[dict, dict]:
    """Divide a data set into chosen images and the others.

    Args:
        coco (dict): Consistent data set in COCO format, not changed.
        chosen (set[int]): Positions of the chosen images in the file.
        keep_hidden_labels (bool): Whether the others keep their
            annotations. Defaults to True.

    Returns:
        tuple[dict, dict]: The chosen part and the other one. Both keep the
        order of the source and all its other fields.
    """
    images = coco['images']
    labeled_ids = {images[i]['id'] for i in chosen}
    labeled, unlabeled = dict(coco), dict(coco)
    labeled['images'] = [i for i in images if i['id'] in labeled_ids]
    unlabeled['images'] = [i for i in images if i['id'] not in labeled_ids]
    labeled['annotations'], hidden = [], []
    for ann in coco['annotations']:
        here = ann['image_id'] in labeled_ids
        (labeled['annotations'] if here else hidden).append(ann)
    unlabeled['annotations'] = hidden if keep_hidden_labels else []
    check_no_leak(labeled, unlabeled)
    return labeled, unlabeled
