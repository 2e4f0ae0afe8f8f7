# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""New labelled/unlabelled splits of any folder of images and masks."""
import numbers
import os
from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image
from rich.progress import track

from .splits import split_coco

PathLike = Union[str, Path]


def read_names(path: PathLike) -> List[str]:
    """Read one of mmseg's list files.

    Args:
        path (str | Path): One name without suffix per line.

    Returns:
        list[str]: The names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the list is empty, or has a blank line or a name
            twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no list file {path}.')
    names = [
        line.strip()
        for line in path.read_text(encoding='utf-8-sig').splitlines()
    ]
    if not names:
        raise ValueError(f'The list {path} is empty.')
    if '' in names:
        raise ValueError(f'Line {names.index("") + 1} of {path} is blank; '
                         'mmseg would take it for an image.')
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f'{path} lists {twice[0]} more than once.')
    return names


def find_pairs(img_dir: PathLike,
               mask_dir: PathLike,
               img_suffix: str = '.jpg',
               mask_suffix: str = '.png',
               names: Optional[Sequence[str]] = None) -> List[str]:
    """List the images of a folder that has a mask for each.

    Args:
        img_dir (str | Path): Folder of images, also in sub-folders.
        mask_dir (str | Path): Folder of masks, laid out alike.
        img_suffix (str): What image files end with. Defaults to '.jpg'.
        mask_suffix (str): What mask files end with instead. Defaults to
            '.png'.
        names (Sequence[str], optional): Use these images only. Defaults to
            None, all.

    Returns:
        list[str]: Names relative to the folders, without suffix and with
        forward slashes, sorted: the lines of mmseg's list files.

    Raises:
        FileNotFoundError: If a folder, an image or a mask is missing.
        ValueError: If there is no image.
    """
    img_dir, mask_dir = Path(img_dir), Path(mask_dir)
    for field, folder in (('img_dir', img_dir), ('mask_dir', mask_dir)):
        if not folder.is_dir():
            raise FileNotFoundError(f'There is no folder {folder} ({field}).')
    if names is None:
        # Without links to parents, on which the search would not end.
        names = [
            (Path(folder) / file).relative_to(img_dir).as_posix()
            for folder, _, files in os.walk(img_dir) for file in files
            if file.endswith(img_suffix) and not file.startswith('.')
        ]
        names = [name[:len(name) - len(img_suffix)] for name in names]
    names = sorted(names)
    if not names:
        raise ValueError(f'No file in {img_dir} ends with {img_suffix!r} '
                         '(img_suffix).')
    for what, folder, suffix in (('images', img_dir, img_suffix),
                                 ('masks', mask_dir, mask_suffix)):
        absent = [
            folder / f'{name}{suffix}' for name in names
            if not (folder / f'{name}{suffix}').is_file()
        ]
        if absent:
            raise FileNotFoundError(
                f'{len(absent)} of {len(names)} {what} do not exist, among '
                f'them {", ".join(map(str, absent[:3]))}. Only images with '
                'masks can be split; images without one are unlabelled '
                'already.')
    return names


def classes_in_masks(mask_dir: PathLike,
                     names: Sequence[str],
                     mask_suffix: str = '.png',
                     ignore_index: Optional[int] = 255,
                     progress: bool = False) -> Dict[str, List[int]]:
    """Read which label values each mask holds.

    Args:
        mask_dir (str | Path): Folder of masks.
        names (Sequence[str]): Names without suffix, see :func:`find_pairs`.
        mask_suffix (str): Defaults to '.png'.
        ignore_index (int, optional): Value that is no class. Defaults to
            255.
        progress (bool): Show a progress bar. Defaults to False.

    Returns:
        dict[str, list[int]]: Sorted label values by name.

    Raises:
        ValueError: If a mask cannot be read or has several channels.
    """
    found = {}
    for name in track(
            names, description='masks', disable=not progress):
        values = np.unique(read_mask(Path(mask_dir) / f'{name}{mask_suffix}'))
        found[name] = [int(v) for v in values if v != ignore_index]
    return found


def read_mask(path: PathLike) -> np.ndarray:
    """Read a mask the way mmseg does, but refuse pictures.

    Args:
        path (str | Path): Image with one channel, or with a palette.

    Returns:
        ndarray: Integer label values (H, W).

    Raises:
        ValueError: If the file cannot be read or has several channels.
    """
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:
        raise ValueError(f'The mask {path} cannot be read: '
                         f'{" ".join(str(error).split())}') from error
    if values.ndim != 2:
        raise ValueError(
            f'The mask {path} is a colour picture (mode {mode}). A mask has '
            'one channel of class numbers, or a palette (mode P), whose '
            'indices are the class numbers.')
    if values.dtype.kind == 'f':
        raise ValueError(f'The mask {path} holds floating-point numbers '
                         f'(mode {mode}), not class numbers.')
    return values.astype(np.int64)


def split_by_classes(classes: Dict[str, Sequence[int]],
                     percent: Optional[float] = None,
                     count: Optional[int] = None,
                     seed: int = 0,
                     fold: int = 0,
                     keep_all_classes: bool = True
                     ) -> Tuple[List[str], List[str]]:
    """Choose the labelled images of a new split.

    It draws as :func:`mmsemi.datasets.split_coco` does: with the same seed
    and fold a larger part holds the smaller one, save for images swapped to
    keep a class.

    Args:
        classes (dict[str, Sequence[int]]): Label values by image name, see
            :func:`classes_in_masks`.
        percent (float, optional): Share of labelled images, in percent.
        count (int, optional): Number of labelled images instead.
        seed (int): Defaults to 0.
        fold (int): Number of the draw. Defaults to 0.
        keep_all_classes (bool): Whether every class of the source occurs in
            the labelled part. Defaults to True.

    Returns:
        tuple[list[str], list[str]]: Labelled and unlabelled names, sorted.

    Raises:
        ValueError: If percent or count would label no image or all of
            them, or too few to hold every class.
    """
    if (percent is None) == (count is None):
        raise ValueError('Give either percent or count, got '
                         f'percent={percent} and count={count}.')
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, numbers.Integral):
            raise TypeError(f'count must be an int, got {count!r}.')
        if not 0 < count < len(classes):
            raise ValueError(
                f'count must be at least 1 and below the {len(classes)} '
                f'images that there are, got {count}.')
        percent = 100 * count / len(classes)
    try:
        labeled, unlabeled = split_coco(
            _as_coco(classes),
            percent,
            seed=seed,
            fold=fold,
            keep_all_classes=keep_all_classes)
    except ValueError as error:
        if count is None:
            raise
        text = str(error).replace(f'percent={percent}', f'count={count}')
        raise ValueError(text.replace('Raise percent',
                                      'Raise count')) from None
    return _names(labeled), _names(unlabeled)


def new_split_stem(percent: Optional[float], count: Optional[int], seed: int,
                   fold: int, prefix: str = 'train') -> str:
    """Return the file stem of a new split.

    Args:
        percent (float, optional): Percentage of the split.
        count (int, optional): Number of labelled images instead.
        seed (int): Seed.
        fold (int): Fold.
        prefix (str): Defaults to 'train'.

    Returns:
        str: 'train.seed0-fold0@10' or 'train.seed0-fold0@50images'.
    """
    part = f'{count}images' if percent is None else f'{percent:g}'
    return f'{prefix}.seed{seed}-fold{fold}@{part}'


def _as_coco(classes: Dict[str, Sequence[int]]) -> dict:
    """Describe masks as COCO does, with one annotation per class."""
    images = [
        dict(id=i, file_name=name) for i, name in enumerate(sorted(classes))
    ]
    annotations = [
        dict(id=0, image_id=img['id'], category_id=int(value))
        for img in images for value in classes[img['file_name']]
    ]
    if not annotations:
        raise ValueError('No mask holds a class: all pixels are ignored.')
    values = sorted({ann['category_id'] for ann in annotations})
    return dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=v, name=f'class {v}') for v in values])


def _names(part: dict) -> List[str]:
    return sorted(img['file_name'] for img in part['images'])


def class_shares(classes: Dict[str, Sequence[int]],
                 names: Iterable[str]) -> Dict[int, int]:
    """Count the images of a part that hold each class of the source.

    Args:
        classes (dict[str, Sequence[int]]): Label values by image name.
        names (Iterable[str]): Names of the part.

    Returns:
        dict[int, int]: Number of images by class, classes sorted; 0 for a
        class that the part lacks.
    """
    counts = {v: 0 for v in sorted({v for vs in classes.values() for v in vs})}
    for name in names:
        for value in classes[name]:
            counts[value] += 1
    return counts
