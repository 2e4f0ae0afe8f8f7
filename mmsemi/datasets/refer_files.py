# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Annotations of referring expressions: files of RefCOCO, and our JSON.

RefCOCO, RefCOCO+ and G-Ref come as ``instances.json`` in COCO's format and
``refs(*).p``, a pickled list of objects with their sentences. A pickle can
run any command when it is loaded, and the official host of these files is
down, so they come from anywhere: only :func:`load_refs` reads them, which
refuses everything but plain values. ``tools/dataset_converters/refer2json.py``
turns the two files into one JSON file per data set and partition, the only
file that training reads::

    {"version": 1, "dataset": "refcoco", "partition": "unc",
     "images": [{"image_id", "file_name", "height", "width"}],
     "annotations": [{"ann_id", "image_id", "category_id", "segmentation",
                      "bbox", "area"}],
     "refs": [{"ref_id", "ann_id", "image_id", "split",
               "sentences": [{"sent_id", "raw", "sent"}]}]}

``segmentation`` is COCO's (polygons or run lengths), ``bbox`` is (x, y,
width, height) in pixels, ``raw`` is a sentence as it was typed and ``sent``
its cleaned form.
"""
import io
import json
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence, Tuple, Union

from .text_files import write_texts

PathLike = Union[str, Path]
VERSION = 1

#: Refs and images of every split, by data set and partition; from the page
#: of tensorflow_datasets' ref_coco.
KNOWN_COUNTS = {
    ('refcoco', 'unc'):
    dict(
        train=(42404, 16994),
        val=(3811, 1500),
        testA=(1975, 750),
        testB=(1810, 750)),
    ('refcoco', 'google'):
    dict(train=(40000, 19213), val=(5000, 4559), test=(5000, 4527)),
    ('refcoco+', 'unc'):
    dict(
        train=(42278, 16992),
        val=(3805, 1500),
        testA=(1975, 750),
        testB=(1798, 750)),
    ('refcocog', 'google'):
    dict(train=(44822, 24698), val=(5000, 4650)),
    ('refcocog', 'umd'):
    dict(train=(42226, 21899), val=(2573, 1300), test=(5023, 2600)),
}

_FIELDS = dict(
    images=('image_id', 'file_name', 'height', 'width'),
    annotations=('ann_id', 'image_id', 'category_id', 'segmentation', 'bbox',
                 'area'),
    refs=('ref_id', 'ann_id', 'image_id', 'split', 'sentences'))
_SENTENCE_FIELDS = ('sent_id', 'raw', 'sent')


class _PlainUnpickler(pickle.Unpickler):
    """Loads lists, dicts, texts and numbers, and nothing that has a class."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(
            f'it asks for {module}.{name}, but only lists, dicts, texts and '
            'numbers are loaded, because anything else could run code')


def load_refs(path: PathLike) -> List[dict]:
    """Read a pickled list of refs without running code from it.

    Texts that Python 2 wrote as bytes are read as UTF-8, and if they are
    not, as Latin-1.

    Args:
        path (str | Path): File such as ``refs(unc).p``, of any protocol.

    Returns:
        list[dict]: The refs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no pickle, damaged, or holds more than plain
            values, or no list of dicts.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no file of refs {path}.')
    content = path.read_bytes()
    try:
        try:
            refs = _PlainUnpickler(
                io.BytesIO(content), encoding='utf-8').load()
        except UnicodeDecodeError:
            refs = _PlainUnpickler(
                io.BytesIO(content), encoding='latin1').load()
    # A damaged pickle raises whatever its broken opcodes lead to.
    except Exception as error:
        raise ValueError(
            f'{path} cannot be read as a pickle of plain values: {error}. A '
            'file that was pickled with NumPy numbers has to be made anew '
            'from the original by its owner.') from None
    if not isinstance(refs, list) or not all(
            isinstance(ref, dict) for ref in refs):
        raise ValueError(f'{path} must hold a list of refs (dicts), it holds '
                         f'a {type(refs).__name__}.')
    return refs


def convert_refs(refs: Sequence[dict],
                 instances: dict,
                 dataset: str,
                 partition: str,
                 check_counts: bool = True) -> dict:
    """Bring refs and instances into one annotation.

    Args:
        refs (Sequence[dict]): From :func:`load_refs`; their order is kept.
        instances (dict): Content of ``instances.json`` (COCO's format). Only
            images and annotations that a ref names are taken over.
        dataset (str): Name, such as 'refcoco'.
        partition (str): Name, such as 'unc'.
        check_counts (bool): Whether refs and images of the splits must be
            as many as published; False for other data. Defaults to True.

    Returns:
        dict: Annotation as in the module's description.

    Raises:
        ValueError: If something is missing, occurs twice or does not fit,
            or if there is another number of refs or images.
    """
    if check_counts and (dataset, partition) not in KNOWN_COUNTS:
        known = ', '.join(' '.join(pair) for pair in KNOWN_COUNTS)
        raise ValueError(
            f'The numbers of {dataset} ({partition}) are not known; known '
            f'are: {known}. Turn the check off for other data '
            '(check_counts=False, --other-data).')
    for key in ('images', 'annotations'):
        if not isinstance(instances.get(key), list):
            raise ValueError(f'The instances have no list "{key}"; they must '
                             "be in COCO's format.")
    images, anns = (_by_id(instances[key], key)
                    for key in ('images', 'annotations'))
    out: Dict[str, Any] = dict(
        version=VERSION,
        dataset=dataset,
        partition=partition,
        images=[],
        annotations=[],
        refs=[])
    used: Dict[str, dict] = dict(images={}, annotations={})
    for ref in refs:
        _need(ref, _FIELDS['refs'], 'refs')
        for key, entries, field in (('annotations', anns, 'ann_id'),
                                    ('images', images, 'image_id')):
            if ref[field] not in entries:
                raise ValueError(
                    f'Ref {ref["ref_id"]} has {field}={ref[field]}, which the '
                    'instances do not have. Do both files belong together?')
            used[key][ref[field]] = entries[ref[field]]
        out['refs'].append(
            dict(
                {key: ref[key]
                 for key in _FIELDS['refs'][:-1]},
                sentences=[{key: sentence[key]
                            for key in _SENTENCE_FIELDS}
                           for sentence in _sentences(ref)]))
    for key, id_field in (('images', 'image_id'), ('annotations', 'ann_id')):
        for number, entry in used[key].items():
            entry = {**entry, id_field: number}
            _need(entry, _FIELDS[key], key)
            mask = entry.get('segmentation')
            if isinstance(mask, list):
                # What is no polygon; pycocotools takes four numbers for a box.
                entry['segmentation'] = [
                    part for part in mask
                    if not isinstance(part, list) or len(part) >= 6
                ]
            out[key].append({field: entry[field] for field in _FIELDS[key]})
    check_annotations(out)
    if check_counts:
        _check_counts(out)
    return out


def check_annotations(data: Any) -> None:
    """Raise ValueError if an annotation of expressions is inconsistent.

    Args:
        data (dict): Annotation as in the module's description.
    """
    if not isinstance(data, dict):
        raise ValueError('Annotations of referring expressions must be one '
                         f'JSON object, got a {type(data).__name__}.')
    if data.get('version') != VERSION:
        raise ValueError(
            f'The annotations have version {data.get("version")!r}, this '
            f'code reads version {VERSION}. They are made by '
            'tools/dataset_converters/refer2json.py (from RefCOCO) or '
            'make_digits.py --referring.')
    for key, fields in _FIELDS.items():
        if not isinstance(data.get(key), list) or not data[key]:
            raise ValueError(f'The annotations have no list "{key}", or an '
                             'empty one.')
        for entry in data[key]:
            _need(entry, fields, key)
        _refuse_twice((entry[fields[0]] for entry in data[key]), fields[0],
                      key)
    _refuse_twice((image['file_name'] for image in data['images']),
                  'file_name', 'images')
    images = {image['image_id']: image for image in data['images']}
    for image in data['images']:
        if not isinstance(image['file_name'], str) or not all(
                _is_count(image[side]) for side in ('height', 'width')):
            raise ValueError('An image needs a file name and its height and '
                             f'width in pixels, got {_short(image)}.')
    anns = {ann['ann_id']: ann for ann in data['annotations']}
    for ann in data['annotations']:
        if ann['image_id'] not in images:
            raise ValueError(f'Annotation {ann["ann_id"]} is of image '
                             f'{ann["image_id"]}, which is not there.')
        _check_geometry(ann, images[ann['image_id']])
    for ref in data['refs']:
        ann = anns.get(ref['ann_id'])
        if ann is None:
            raise ValueError(f'Ref {ref["ref_id"]} is of annotation '
                             f'{ref["ann_id"]}, which is not there.')
        if ref['image_id'] != ann['image_id']:
            raise ValueError(
                f'Ref {ref["ref_id"]} is of image {ref["image_id"]}, but its '
                f'annotation {ref["ann_id"]} of image {ann["image_id"]}.')
        if not isinstance(ref['split'], str):
            raise ValueError(f'Ref {ref["ref_id"]} has the split '
                             f'{ref["split"]!r}, which is no name.')
        for sentence in _sentences(ref):
            if not all(isinstance(sentence[key], str)
                       for key in ('raw', 'sent')):
                raise ValueError(f'A sentence of ref {ref["ref_id"]} is no '
                                 f'text: {_short(sentence)}.')
    _refuse_twice((sentence['sent_id'] for ref in data['refs']
                   for sentence in ref['sentences']), 'sent_id', 'refs')


def write_annotations(data: dict,
                      path: PathLike,
                      overwrite: bool = False) -> None:
    """Check annotations and write them; the file appears whole or not.

    Args:
        data (dict): Annotation as in the module's description.
        path (str | Path): JSON file; folders are created where missing.
        overwrite (bool): Whether a file with other content may be replaced.
            Defaults to False.

    Raises:
        ValueError: If the annotations are inconsistent.
        FileExistsError: If a file with other content is in the way.
    """
    check_annotations(data)
    write_texts({Path(path): json.dumps(data)}, overwrite)


def read_annotations(path: PathLike) -> dict:
    """Read annotations and check them.

    Args:
        path (str | Path): JSON file.

    Returns:
        dict: Annotation as in the module's description.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no valid JSON, or inconsistent.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'There is no annotation file {path}. Make it with '
            'tools/dataset_converters/refer2json.py (RefCOCO and its kin) or '
            'make_digits.py --referring.')
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not valid JSON ({error}); it may be cut '
                         'off. A pickle (.p) is converted by '
                         'tools/dataset_converters/refer2json.py.') from None
    try:
        check_annotations(data)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    return data


def split_counts(data: dict) -> Dict[str, Tuple[int, int, int]]:
    """Count what the splits hold.

    Args:
        data (dict): Annotation as in the module's description.

    Returns:
        dict[str, tuple[int, int, int]]: Refs, images and sentences by split,
        in order of first appearance.
    """
    counts: Dict[str, tuple] = {}
    for ref in data['refs']:
        images, sentences = counts.setdefault(ref['split'], (set(), []))
        images.add(ref['image_id'])
        sentences.append(len(ref['sentences']))
    return {
        split: (len(sentences), len(images), sum(sentences))
        for split, (images, sentences) in counts.items()
    }


def _check_counts(data: dict) -> None:
    known = KNOWN_COUNTS[data['dataset'], data['partition']]
    found = {split: n[:2] for split, n in split_counts(data).items()}
    wrong = [
        f'{split}: {found.get(split, (0, 0))} instead of {expected}'
        for split, expected in known.items() if found.get(split) != expected
    ]
    wrong += [
        f'{split}: {numbers}, not published'
        for split, numbers in found.items() if split not in known
    ]
    if wrong:
        raise ValueError(
            f'{data["dataset"]} ({data["partition"]}) has other numbers of '
            f'(refs, images) than published: {"; ".join(wrong)}. Are dataset '
            'and partition right? Turn the check off for other data '
            '(check_counts=False, --other-data).')


def _check_geometry(ann: dict, image: dict) -> None:
    name, box, mask = ann['ann_id'], ann['bbox'], ann['segmentation']
    if not isinstance(box, list) or len(box) != 4 or not all(
            map(_is_number, box)) or min(box[2:]) < 0:
        raise ValueError(f'Annotation {name} needs a box (x, y, width, '
                         f'height) in pixels, got {_short(box)}.')
    if isinstance(mask, dict):
        size = [image['height'], image['width']]
        if list(mask.get('size') or ()) != size or 'counts' not in mask:
            raise ValueError(
                f'Annotation {name} has run lengths of size '
                f'{mask.get("size")}, its image has {size} (height, width).')
    elif not isinstance(mask, list) or not mask or not all(
            isinstance(part, list) and len(part) >= 6 and len(part) %
            2 == 0 and all(map(_is_number, part)) for part in mask):
        raise ValueError(
            f'Annotation {name} needs polygons of three corners at least, '
            f'or run lengths, got {_short(mask)}.')


def _by_id(entries: list, key: str) -> dict:
    for entry in entries:
        _need(entry, ('id', ), key)
    _refuse_twice((entry['id'] for entry in entries), 'id', key)
    return {entry['id']: entry for entry in entries}


def _need(entry: Any, fields: Sequence[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f'An entry of "{where}" is no object: '
                         f'{_short(entry)}')
    missing = [field for field in fields if field not in entry]
    if missing:
        raise ValueError(f'An entry of "{where}" has no '
                         f'{", ".join(missing)}: {_short(entry)}')


def _sentences(ref: dict) -> list:
    if not isinstance(ref['sentences'], list) or not ref['sentences']:
        raise ValueError(f'Ref {ref["ref_id"]} has no sentence.')
    for sentence in ref['sentences']:
        _need(sentence, _SENTENCE_FIELDS, f'ref {ref["ref_id"]}')
    return ref['sentences']


def _refuse_twice(values: Iterable, field: str, where: str) -> None:
    try:
        twice = [value for value, n in Counter(values).items() if n > 1]
    except TypeError:
        raise ValueError(f'A {field} of "{where}" is no number or text.'
                         ) from None
    if twice:
        raise ValueError(f'{len(twice)} values of {field} occur more than '
                         f'once in "{where}", among them {twice[0]}.')


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(
        value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f'{text[:117]}...'
