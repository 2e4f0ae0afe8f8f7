# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Set labelled images aside, to measure a teacher that never saw them."""
import hashlib
import math
import numbers
from collections import Counter
from pathlib import Path
from typing import List, Mapping, NamedTuple, Sequence, Set, Union

from mmengine.fileio import dump

from .coco_files import check_coco, check_no_leak
from .splits import class_names, divide_images, instances_per_image
from .text_files import write_texts

ImageId = Union[int, str]


class HeldOutSplit(NamedTuple):
    """Two parts of a labelled data set.

    Args:
        fit (dict): What the teacher learns from, in COCO format.
        calib (dict): What it is measured on, likewise.
        wanted (int): Number of images that ``calib`` was to have; rare
            classes can make it smaller.
        unmeasured (list[str]): Names of classes with instances, but none in
            ``calib``.
    """

    fit: dict
    calib: dict
    wanted: int
    unmeasured: List[str]


def hold_out_images(coco: dict,
                    fraction: float = 0.1,
                    min_images: int = 50,
                    max_images: int = 2000,
                    keep_share: float = 2 / 3,
                    rare_images: int = 10) -> HeldOutSplit:
    """Set a part of the labelled images aside for calibration.

    Images are taken in the order of a hash of their id, so neither the order
    in the file nor a seed plays a role, and a larger part holds a smaller
    one. An image is passed over if one of its classes would keep too few
    others. A class with n images keeps at least
    ``keep_share * min(n, rare_images)`` of them, rounded up: a rare one its
    share, and no class goes without. Crowd and ignored annotations do not
    count.

    Args:
        coco (dict): Labelled data set in COCO format. It is not changed; the
            parts share its image and annotation entries.
        fraction (float): Share of the images to set aside, above 0 up to
            0.5. Defaults to 0.1.
        min_images (int): Set aside at least so many, but never more than
            half of all. Defaults to 50.
        max_images (int): Set aside at most so many. Defaults to 2000.
        keep_share (float): Above 0 up to 1. Defaults to 2 / 3.
        rare_images (int): A class with so many images, or fewer, is rare.
            Defaults to 10, as in LVIS.

    Returns:
        HeldOutSplit: The two parts and what they lack.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If the data set is inconsistent or has no instances, an
            argument is out of range, or no image can be set aside.
    """
    check_coco(coco)
    _check_share('fraction', fraction, 0.5)
    _check_share('keep_share', keep_share, 1)
    for name, value, least in (('min_images', min_images, 1),
                               ('max_images', max_images, min_images),
                               ('rare_images', rare_images, 1)):
        _check_count(name, value, least)
    classes = _classes_per_image(coco)
    num = len(classes)
    asked = math.floor(fraction * num + 0.5)
    wanted = min(max(asked, min_images), max_images, num // 2)
    total = Counter(c for found in classes for c in found)
    spare = {
        # 2 / 3 of 3 must not be rounded up to 3.
        c: n - math.ceil(keep_share * min(n, rare_images) - 1e-9)
        for c, n in total.items()
    }
    chosen: Set[int] = set()
    for i in hash_order([img['id'] for img in coco['images']]):
        if len(chosen) == wanted:
            break
        if all(spare[c] > 0 for c in classes[i]):
            chosen.add(i)
            for c in classes[i]:
                spare[c] -= 1
    if not chosen:
        raise ValueError(
            f'None of the {num} images can be held out: there are too few, '
            'or each has a class that would keep less than keep_share='
            f'{keep_share:g} of its images. Label more images, or lower '
            'keep_share.')
    calib, fit = divide_images(coco, chosen)
    return HeldOutSplit(fit, calib, wanted, missing_classes(coco, calib))


def halve_images(coco: dict) -> List[dict]:
    """Divide the labelled images into two halves, for cross-fitting.

    One teacher is trained on each half and measured on the other.

    Args:
        coco (dict): Labelled data set in COCO format, not changed.

    Returns:
        list[dict]: Two parts in COCO format; see :func:`first_half` and
        :func:`missing_classes`.

    Raises:
        ValueError: If the data set is inconsistent or has no instances or
            fewer than two images.
    """
    check_coco(coco)
    _classes_per_image(coco)
    if len(coco['images']) < 2:
        raise ValueError('The data set has a single image; two folds need at '
                         'least two.')
    return list(
        divide_images(coco, first_half([img['id']
                                        for img in coco['images']])))


def missing_classes(coco: dict, part: dict) -> List[str]:
    """List the classes that a part has no instance of.

    Args:
        coco (dict): Data set in COCO format.
        part (dict): A part of it.

    Returns:
        list[str]: Names of the classes that the whole has instances of, in
        the order of "categories".
    """
    there, here = (set().union(*map(set, instances_per_image(data)))
                   for data in (coco, part))
    return [
        str(name) for c, name in class_names(coco).items()
        if c in there - here
    ]


def hash_order(ids: Sequence[ImageId]) -> List[int]:
    """Return the positions of image ids, in the order of their hash.

    Args:
        ids (Sequence[int or str]): Ids; 7 and '7' are the same.

    Returns:
        list[int]: All positions. How two ids are ordered depends on no
        other id, on no seed and on no library's version.
    """

    def key(i: int) -> tuple:
        text = str(ids[i])
        return hashlib.sha256(text.encode('utf-8')).digest(), text

    return sorted(range(len(ids)), key=key)


def first_half(ids: Sequence[ImageId]) -> Set[int]:
    """Return the positions of the first half by :func:`hash_order`.

    Args:
        ids (Sequence[int or str]): Ids of images.

    Returns:
        set[int]: Of an odd number the larger half.
    """
    return set(hash_order(ids)[:(len(ids) + 1) // 2])


def write_parts(parts: Mapping[str, dict],
                out_dir: Union[str, Path],
                stem: str,
                overwrite: bool = False) -> List[Path]:
    """Write ``{stem}-{name}.json`` for two parts.

    Args:
        parts (Mapping[str, dict]): Two parts in COCO format by name.
        out_dir (str or Path): Folder, created when missing.
        stem (str): What the file names begin with.
        overwrite (bool): Whether files with other content may be replaced.
            Defaults to False.

    Returns:
        list[Path]: The files.

    Raises:
        ValueError: If the parts share an image.
        FileExistsError: If a file with other content is in the way; nothing
            is written then.
    """
    check_no_leak(*parts.values())
    paths = [Path(out_dir) / f'{stem}-{name}.json' for name in parts]
    texts = [dump(part, file_format='json') for part in parts.values()]
    write_texts(dict(zip(paths, texts)), overwrite)
    return paths


def _classes_per_image(coco: dict) -> List[Set[int]]:
    classes = [set(counts) for counts in instances_per_image(coco)]
    if not any(classes):
        raise ValueError('The data set has no instances: all its annotations '
                         'are crowd regions, ignored or empty.')
    return classes


def _check_share(name: str, value: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f'{name} must be a number, got {value!r}.')
    if not 0 < value <= most:
        raise ValueError(f'{name} must be more than 0 and at most {most:g}, '
                         f'got {value}.')


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f'{name} must be an int, got {value!r}.')
    if value < least:
        raise ValueError(f'{name} must be at least {least}, got {value}.')
