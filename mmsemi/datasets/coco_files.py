# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Read, check and write COCO-format annotation files."""
import json
import posixpath
from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, Optional, Sequence, Tuple, Union

from mmengine.fileio import dump

from .text_files import write_texts


def load_coco(path: Union[str, Path]) -> dict:
    """Read a COCO-format JSON file.

    Args:
        path (str | Path): The annotation file.

    Returns:
        dict: Its content, not checked further than being an object.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no valid JSON or no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no annotation file {path}.')
    try:
        coco = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(
            f'{path} is not valid JSON ({error}); it may be cut off.'
        ) from None
    if not isinstance(coco, dict):
        raise ValueError(f'{path} must hold one JSON object with "images", '
                         '"annotations" and "categories", it holds a '
                         f'{type(coco).__name__}.')
    return coco


def check_coco(coco: dict) -> None:
    """Raise ValueError if a COCO-format dict is not consistent.

    Args:
        coco (dict): Data set in COCO format. An image needs ``id`` and
            ``file_name``; ``coco_url`` serves as name too, as in LVIS.
    """
    if not isinstance(coco, dict):
        raise TypeError('The data set must be a dict in COCO format, got '
                        f'{type(coco).__name__}.')
    for key in ('images', 'annotations', 'categories'):
        if key not in coco:
            raise ValueError(f'The data set has no "{key}"; it has '
                             f'{sorted(coco)}. Is it a COCO instances file?')
        if not isinstance(coco[key], list) or not all(
                isinstance(item, dict) for item in coco[key]):
            raise ValueError(f'"{key}" must be a list of objects.')
        if not coco[key]:
            raise ValueError(f'The data set has no entry in "{key}".')
    for key in ('images', 'categories'):
        _check_unique([_get(item, 'id', key) for item in coco[key]],
                      f'ids in "{key}"')
    _check_unique([file_name(img) for img in coco['images']],
                  'file names in "images"')
    images = {img['id'] for img in coco['images']}
    classes = {cat['id'] for cat in coco['categories']}
    for ann in coco['annotations']:
        for field, known in (('image_id', images), ('category_id', classes)):
            value = _get(ann, field, 'annotations')
            if value not in known:
                raise ValueError(
                    f'Annotation {ann.get("id")} has {field}={value}, which '
                    'the data set does not list.')


def check_no_leak(labeled: dict,
                  unlabeled: dict,
                  val: Optional[dict] = None) -> None:
    """Raise ValueError if the parts share an image.

    Args:
        labeled (dict): Labelled part in COCO format.
        unlabeled (dict): Unlabelled part in COCO format. It is compared
            with the labelled part by id and by file name.
        val (dict, optional): Validation set. Its ids count anew in its own
            file, so it is compared by file name only. Defaults to None.
    """
    parts = dict(labelled=labeled, unlabelled=unlabeled)
    if val is not None:
        parts['validation'] = val
    for name, part in parts.items():
        if not isinstance(part, dict) or 'images' not in part:
            raise ValueError(f'The {name} part has no "images".')
    ids = {
        name: {_get(img, 'id', 'images') for img in part['images']}
        for name, part in parts.items()
    }
    files = {
        name: {file_name(img) for img in part['images']}
        for name, part in parts.items()
    }
    _refuse_shared('labelled', 'unlabelled', 'ids', ids)
    _refuse_shared('labelled', 'unlabelled', 'file names', files)
    if val is not None:
        _refuse_shared('labelled', 'validation', 'file names', files)
        _refuse_shared('unlabelled', 'validation', 'file names', files)


def write_split(labeled: dict,
                unlabeled: dict,
                out_dir: Union[str, Path],
                stem: str,
                overwrite: bool = False) -> Tuple[Path, Path]:
    """Write ``{stem}.json`` and ``{stem}-unlabeled.json``.

    Each file appears whole or not at all. A file that already has this
    very content is left alone.

    Args:
        labeled (dict): Labelled part.
        unlabeled (dict): Unlabelled part.
        out_dir (str | Path): Folder, created when missing.
        stem (str): File name without ``.json``; see :func:`split_stem`.
        overwrite (bool): Whether files with other content may be
            replaced. Defaults to False.

    Returns:
        tuple[Path, Path]: The two files.

    Raises:
        ValueError: If the parts share an image.
        FileExistsError: If a file with other content is in the way.
    """
    check_no_leak(labeled, unlabeled)
    out_dir = Path(out_dir)
    paths = (out_dir / f'{stem}.json', out_dir / f'{stem}-unlabeled.json')
    texts = [dump(part, file_format='json') for part in (labeled, unlabeled)]
    write_texts(dict(zip(paths, texts)), overwrite)
    return paths


def _check_unique(values: Sequence, what: str) -> None:
    twice = [value for value, n in Counter(values).items() if n > 1]
    if twice:
        raise ValueError(f'Duplicate {what}: {_some(twice)}.')


def _get(item: dict, field: str, where: str) -> Union[int, str]:
    if field not in item:
        raise ValueError(f'An entry of "{where}" has no "{field}": '
                         f'{str(item)[:120]}')
    return item[field]


def file_name(img: dict) -> str:
    """Return the normalised file name of an image entry.

    Args:
        img (dict): Entry of "images"; ``coco_url`` stands in for a missing
            ``file_name``, as in LVIS.

    Returns:
        str: File name with forward slashes and without "./".
    """
    name = img.get('file_name') or img.get('coco_url')
    if not isinstance(name, str) or not name:
        raise ValueError(f'Image {img.get("id")} has no "file_name".')
    return posixpath.normpath(name.replace('\\', '/'))


def _refuse_shared(first: str, second: str, what: str,
                   values: Dict[str, set]) -> None:
    shared = values[first] & values[second]
    if shared:
        raise ValueError(
            f'The {first} and the {second} part share {len(shared)} {what}: '
            f'{_some(shared)}. Labels or images would leak.')


def _some(values: Iterable) -> str:
    values = sorted(values, key=str)
    more = '' if len(values) <= 5 else f' and {len(values) - 5} more'
    return ', '.join(map(str, values[:5])) + more
