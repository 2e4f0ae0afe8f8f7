# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Published labelled/unlabelled lists as mmseg's list files.

Papers publish lists for Pascal VOC and Cityscapes in formats that only their
own loaders read. Here they become ids, are checked, recognised, and written
the way mmseg reads them.
"""
import os
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import (Dict, Iterable, List, NamedTuple, Optional, Sequence,
                    Tuple, Union)

from .known_splits import KnownSplit, identify_split, same_size, set_hash
from .text_files import lines_text, write_texts

PathLike = Union[str, Path]

# How each data set names its images.
_IDS = dict(
    voc=re.compile(r'\d{4}_\d{6}'),
    cityscapes=re.compile(r'[a-z]+_\d{6}_\d{6}'))
_ENDINGS = re.compile(
    r'(_leftImg8bit|_gtFine(_labelTrainIds|_labelIds|_color)?)?'
    r'(\.jpe?g|\.png)?$')
_NAMES = dict(voc='Pascal VOC', cityscapes='Cityscapes')


class SplitList(NamedTuple):
    """Ids read from a list file.

    Attributes:
        dataset: 'voc' or 'cityscapes'.
        ids: Image ids in the order of the file.
        path: The file.
    """
    dataset: str
    ids: List[str]
    path: Path


class SemanticSplit(NamedTuple):
    """A converted split.

    Attributes:
        dataset: 'voc' or 'cityscapes'.
        labeled: Ids with labels, in the order of their list.
        unlabeled: Ids without labels; empty if neither an unlabelled nor a
            train list was given.
        known: The published split that ``labeled`` is, or None.
    """
    dataset: str
    labeled: List[str]
    unlabeled: List[str]
    known: Optional[KnownSplit]


def read_split_list(path: PathLike) -> SplitList:
    """Read a published list of any family.

    One image per line: a bare id; an image path; or the paths of image and
    mask with a space (UniMatch, ST++ and those built on them) or a tab (CPS)
    between. Files with ``\\r\\n`` and without a last newline are fine.

    Args:
        path (str | Path): The list.

    Returns:
        SplitList: Normalised ids: '2007_000733', 'aachen_000000_000019'.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty or no text, if a line is blank or
            names neither a VOC nor a Cityscapes image, if both data sets
            occur, or if an image occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no list file {path}.')
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError:
        raise ValueError(
            f'{path} is no text file. Lists that were pickled (.pkl, as for '
            'CutMix-Seg and ClassMix) are not read: unpickling can run any '
            'code, and they hold positions, not names.') from None
    if not lines:
        raise ValueError(f'The list {path} is empty.')
    blank = [number for number, line in enumerate(lines, 1)
             if not line.strip()]
    if blank:
        raise ValueError(
            f'{path} has {len(blank)} blank lines, the first is line '
            f'{blank[0]}. mmseg would take each for an image; remove them.')
    found = [_parse(line, f'{path}, line {number}')
             for number, line in enumerate(lines, 1)]
    datasets = sorted({dataset for dataset, _ in found})
    if len(datasets) > 1:
        raise ValueError(f'{path} mixes images of Pascal VOC and of '
                         'Cityscapes.')
    ids = [image for _, image in found]
    twice = [image for image, n in Counter(ids).items() if n > 1]
    if twice:
        raise ValueError(f'{path} lists {len(twice)} images more than once: '
                         f'{_some(twice)}.')
    return SplitList(datasets[0], ids, path)


def convert_split(labeled: PathLike,
                  unlabeled: Optional[PathLike] = None,
                  train: Optional[PathLike] = None,
                  val: Optional[PathLike] = None) -> SemanticSplit:
    """Read the lists of a split, check and recognise them.

    Args:
        labeled (str | Path): List of the labelled images.
        unlabeled (str | Path, optional): List of the unlabelled images.
        train (str | Path, optional): List of all training images. Without
            ``unlabeled``, the unlabelled images are those of it that are
            not labelled.
        val (str | Path, optional): List that must share no image with the
            training.

    Returns:
        SemanticSplit: The ids. A labelled list that is not known, or whose
        unlabelled list has another size than published, is warned of.

    Raises:
        FileNotFoundError: If a list is missing.
        ValueError: If a list is wrong in itself (:func:`read_split_list`),
            if lists overlap, are of different data sets, or if ``train``
            lacks a training image.
    """
    lists = {
        name: read_split_list(path)
        for name, path in dict(
            labelled=labeled, unlabelled=unlabeled, train=train,
            validation=val).items() if path is not None
    }
    first = lists['labelled']
    for name, other in lists.items():
        if other.dataset != first.dataset:
            raise ValueError(
                f'{first.path} lists images of {_NAMES[first.dataset]}, the '
                f'{name} list {other.path} those of {_NAMES[other.dataset]}.')
    known = identify_split(first.ids)
    if known is not None and known.protocol == 'val':
        raise ValueError(f'{first.path} is the official validation list of '
                         f'{_NAMES[first.dataset]}; do not train on it.')
    if 'train' in lists:
        _check_inside(lists)
        if 'unlabelled' not in lists:
            taken = set(first.ids)
            rest = [i for i in lists['train'].ids if i not in taken]
            lists['unlabelled'] = SplitList(first.dataset, rest,
                                            lists['train'].path)
    check_no_overlap({
        name: lists[name].ids
        for name in ('labelled', 'unlabelled', 'validation') if name in lists
    })
    split = SemanticSplit(
        first.dataset, first.ids,
        lists['unlabelled'].ids if 'unlabelled' in lists else [], known)
    _warn_of_unknown(split, first.path)
    return split


def check_no_overlap(parts: Dict[str, Sequence[str]]) -> None:
    """Refuse parts that share images.

    Args:
        parts (dict[str, Sequence[str]]): Ids or names by the part's name.

    Raises:
        ValueError: With the number of shared images and examples.
    """
    names = list(parts)
    for i, first in enumerate(names):
        for second in names[i + 1:]:
            shared = set(parts[first]) & set(parts[second])
            if not shared:
                continue
            hint = (
                ' If the unlabelled list was published like this, leave it '
                'out and give the train list: the unlabelled images are then '
                'the rest of it.' if 'validation' not in
                (first, second) else '')
            raise ValueError(
                f'The {first} and the {second} list share {len(shared)} '
                f'images: {_some(shared)}.{hint}')


def missing_files(split: SemanticSplit,
                  data_root: PathLike,
                  mask_dir: Optional[str] = None) -> List[str]:
    """Say which images and masks of a split are not on the disk.

    Args:
        split (SemanticSplit): The split.
        data_root (str | Path): ``VOCdevkit/VOC2012`` or ``cityscapes``.
        mask_dir (str, optional): Folder of the masks in ``data_root``.
            Defaults to None: ``SegmentationClassAug`` or ``gtFine/train``.
            Unlabelled images need no mask.

    Returns:
        list[str]: What is wrong, one sentence per kind of file; empty if
        all is there.
    """
    root = Path(data_root)
    lines = dict(
        labelled=mmseg_lines(split.dataset, split.labeled),
        unlabelled=mmseg_lines(split.dataset, split.unlabeled))
    if split.dataset == 'voc':
        folders = 'JPEGImages', mask_dir or 'SegmentationClassAug'
        suffixes = '.jpg', '.png'
    else:
        folders = 'leftImg8bit/train', mask_dir or 'gtFine/train'
        suffixes = '_leftImg8bit.png', '_gtFine_labelTrainIds.png'
    problems = []
    for part, names in lines.items():
        problems += _missing(
            [root / folders[0] / f'{n}{suffixes[0]}' for n in names],
            f'{part} images')
    masks = [root / folders[1] / f'{n}{suffixes[1]}'
             for n in lines['labelled']]
    absent = _missing(masks, 'masks of labelled images')
    if absent:
        absent[0] += _mask_hint(split.dataset, root, masks)
    return problems + absent


def mmseg_lines(dataset: str, ids: Sequence[str]) -> List[str]:
    """Return the lines that mmseg's dataset of this name reads.

    Args:
        dataset (str): 'voc' or 'cityscapes'.
        ids (Sequence[str]): Image ids.

    Returns:
        list[str]: '2007_000733' for ``PascalVOCDataset``;
        'aachen/aachen_000000_000019' for ``CityscapesDataset``, which adds
        its suffixes.
    """
    if dataset == 'voc':
        return list(ids)
    return [f'{image.split("_")[0]}/{image}' for image in ids]


def write_lists(labeled: Sequence[str],
                unlabeled: Optional[Sequence[str]],
                out_dir: PathLike,
                stem: str,
                overwrite: bool = False) -> Tuple[Path, ...]:
    """Write ``{stem}.txt`` and ``{stem}-unlabeled.txt``.

    Args:
        labeled (Sequence[str]): Lines of the labelled list.
        unlabeled (Sequence[str], optional): Lines of the unlabelled list;
            None writes no such file.
        out_dir (str | Path): Folder, created when missing.
        stem (str): File name without suffix.
        overwrite (bool): Whether files with other content may be replaced.
            Defaults to False.

    Returns:
        tuple[Path, ...]: The files.

    Raises:
        ValueError: If a line is blank or occurs twice, or if the lists
            share one.
        FileExistsError: If a file with other content is in the way.
    """
    parts = dict(labelled=list(labeled))
    if unlabeled is not None:
        parts['unlabelled'] = list(unlabeled)
    for name, lines in parts.items():
        if any(not line.strip() or '\n' in line for line in lines):
            raise ValueError(f'The {name} list has a blank name.')
        if len(set(lines)) < len(lines):
            raise ValueError(f'The {name} list has a name twice.')
    check_no_overlap(parts)
    files = {
        Path(out_dir) / f'{stem}{part}.txt': lines_text(lines)
        for part, lines in zip(('', '-unlabeled'), parts.values())
    }
    write_texts(files, overwrite)
    return tuple(files)


def _parse(line: str, where: str) -> Tuple[str, str]:
    """Return data set and id of a line."""
    found = set()
    for path in line.split():
        name = re.split(r'[/\\]', path)[-1]
        name = _ENDINGS.sub('', name)
        datasets = [key for key, rule in _IDS.items() if rule.fullmatch(name)]
        if not datasets:
            raise ValueError(
                f'{where}: {line.strip()[:120]!r} names no image of Pascal '
                'VOC (2007_000733) or Cityscapes (aachen_000000_000019).')
        found.add((datasets[0], name))
    if len(found) > 1:
        raise ValueError(f'{where}: {line.strip()[:120]!r} pairs an image '
                         'with the mask of another one.')
    return found.pop()


def _check_inside(lists: Dict[str, SplitList]) -> None:
    train = lists['train']
    for name in ('labelled', 'unlabelled'):
        outside = set(lists[name].ids) - set(train.ids) \
            if name in lists else ()
        if outside:
            hint = (' Most lists of VOC need train_aug (10,582 images), not '
                    'the official train.txt.'
                    if train.dataset == 'voc' else '')
            raise ValueError(
                f'{len(outside)} images of the {name} list '
                f'{lists[name].path} are not in the train list {train.path}: '
                f'{_some(outside)}.{hint}')


def _warn_of_unknown(split: SemanticSplit, path: Path) -> None:
    number = len(split.labeled)
    if split.known is None:
        close = same_size(split.dataset, number)
        same = (f' as many as {", ".join(map(str, close))}, but not the '
                'same ones;' if close else '')
        warnings.warn(
            f'{path} (hash {set_hash(split.labeled)}) is no published list '
            f'that mmsemi knows: {number} images,{same} results on it '
            'compare with no published number.')
    elif split.unlabeled and len(split.unlabeled) != split.known.unlabeled:
        warnings.warn(
            f'{path} is {split.known}, which goes with '
            f'{split.known.unlabeled} unlabelled images, not with '
            f'{len(split.unlabeled)}: results compare with no published '
            'number.')


def _missing(paths: List[Path], what: str) -> List[str]:
    absent = [path for path in paths if not path.is_file()]
    if not absent:
        return []
    return [f'{len(absent)} of {len(paths)} {what} do not exist, among them '
            f'{", ".join(map(str, absent[:3]))}.']


def _mask_hint(dataset: str, root: Path, masks: List[Path]) -> str:
    if dataset == 'voc':
        return (
            ' The official folder SegmentationClass has masks of 2,913 images '
            'only. Training lists with more need SegmentationClassAug (VOC '
            'and SBD, 12,031 masks); published lists call it '
            'SegmentationClass, because their authors copied it over the '
            "official folder. mmseg's tools/dataset_converters/voc_aug.py "
            'makes it from SBD.')
    other = [os.fspath(path).replace('labelTrainIds', 'labelIds')
             for path in masks[:20]]
    if any(map(os.path.isfile, other)):
        return (' There are labelIds files: make labelTrainIds of them with '
                "mmseg's tools/dataset_converters/cityscapes.py.")
    return ''


def _some(values: Iterable[str]) -> str:
    values = sorted(values)
    more = '' if len(values) <= 5 else f' and {len(values) - 5} more'
    return ', '.join(values[:5]) + more
