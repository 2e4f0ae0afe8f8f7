# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Look at annotations of referring expressions before a training does."""
from pathlib import Path
from typing import (Any, Callable, Dict, Iterable, List, NamedTuple, Optional,
                    Sequence, Tuple, Union)

from .coco_files import file_name
from .instance_checks import file_errors, some_of
from .refer_files import check_annotations, split_counts
from .transforms.referring import decode_mask


class ReferringReport(NamedTuple):
    """What was found in annotations of referring expressions."""
    errors: List[str]
    """What a training would fail or go wrong by."""
    warnings: List[str]
    """What may be meant."""
    counts: Dict[str, Tuple[int, int, int]]
    """Refs, images and sentences by split."""


def check_referring(data: dict,
                    img_dir: Optional[Union[str, Path]] = None,
                    lists: Sequence[Sequence[str]] = (),
                    split: str = 'train',
                    track: Callable[[Iterable], Iterable] = iter
                    ) -> ReferringReport:
    """Check ids, images, sentences, masks and splits.

    Args:
        data (dict): Annotation as in :mod:`mmsemi.datasets.refer_files`.
        img_dir (str or Path, optional): Folder of the images, which must be
            there in the noted sizes. Defaults to None: not looked at.
        lists (Sequence[Sequence[str]]): Lists of file names, such as the
            labelled and the unlabelled part of ``split``, which must share
            no image and name images of the split only. Defaults to ().
        split (str): Split that the lists are of. Defaults to 'train'.
        track (Callable): Wraps the list of annotations while their masks
            are decoded, to show progress. Defaults to ``iter``.

    Returns:
        ReferringReport: Errors, warnings, and counts by split.
    """
    try:
        check_annotations(data)
    except ValueError as error:
        return ReferringReport([str(error)], [], {})
    errors, warnings = _shared_images(data)
    blank = [
        sentence['sent_id'] for ref in data['refs']
        for sentence in ref['sentences']
        if not sentence['sent'].strip() or not sentence['raw'].strip()
    ]
    if blank:
        errors.append(f'{len(blank)} sentences are empty; sent_id: '
                      f'{some_of(blank)}.')
    errors += _mask_errors(data, track)
    errors += _list_errors(data, lists, split)
    if img_dir is not None:
        errors += file_errors(data, Path(img_dir))
    return ReferringReport(errors, warnings, split_counts(data))


def _shared_images(data: dict) -> Tuple[List[str], List[str]]:
    """Compare the images of every two splits: errors and warnings."""
    images: Dict[str, set] = {}
    for ref in data['refs']:
        images.setdefault(ref['split'], set()).add(ref['image_id'])
    texts = []
    names = list(images)
    for i, first in enumerate(names):
        for second in names[i + 1:]:
            shared = images[first] & images[second]
            if shared:
                texts.append(
                    f'The splits {first} and {second} share {len(shared)} '
                    f'images: {some_of(sorted(shared))}.')
    # Google's partitions divide objects: known, and nothing to be repaired.
    if data.get('partition') == 'google':
        return [], texts
    return texts, []


def _mask_errors(data: dict, track: Callable) -> List[str]:
    images = {image['image_id']: image for image in data['images']}
    found: Dict[str, List[Any]] = dict(empty=[], broken=[])
    for ann in track(data['annotations']):
        image = images[ann['image_id']]
        try:
            mask = decode_mask(ann['segmentation'], image['height'],
                               image['width'])
        # pycocotools raises many kinds.
        except Exception:
            found['broken'].append(ann['ann_id'])
            continue
        if not mask.any():
            found['empty'].append(ann['ann_id'])
    texts = dict(empty='are empty', broken='cannot be decoded')
    return [
        f'{len(ids)} masks {texts[key]}; ann_id: {some_of(ids)}.'
        for key, ids in found.items() if ids
    ]


def _list_errors(data: dict, lists: Sequence[Sequence[str]],
                 split: str) -> List[str]:
    names = {image['image_id']: file_name(image) for image in data['images']}
    known = {
        names[ref['image_id']]
        for ref in data['refs'] if ref['split'] == split
    }
    errors = []
    for number, listed in enumerate(lists, 1):
        unknown = [name for name in listed if name not in known]
        if unknown:
            errors.append(f'{len(unknown)} images of list {number} have no '
                          f'ref in the split {split!r}: {some_of(unknown)}.')
        for other, earlier in enumerate(lists[:number - 1], 1):
            shared = set(listed) & set(earlier)
            if shared:
                errors.append(f'Lists {other} and {number} share '
                              f'{len(shared)} images: '
                              f'{some_of(sorted(shared))}.')
    return errors
