# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Look at COCO-format instances before a training does."""
from collections import Counter
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Union

from .coco_files import check_coco, file_name
from .unlabeled import image_size


class InstanceReport(NamedTuple):
    """What was found in an annotation file."""
    errors: List[str]
    """What a training would fail or go wrong by."""
    warnings: List[str]
    """What may be meant."""
    counts: Dict[str, int]
    """Instances by class, in the order of the file."""


class KnownInstances(NamedTuple):
    """What the files of a published data set hold."""
    classes: Sequence[str]
    category_ids: Sequence[int]
    num_images: Mapping[str, int]
    """Images by part. They only warn: files get corrected."""


def known_instances(name: str) -> KnownInstances:
    """Return what is published of a data set.

    Args:
        name (str): 'trashcan' (the instance version; numbers as in its
            README, for val as others report them) or 'coco' (2017).

    Returns:
        KnownInstances: Classes, ids and numbers of images.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == 'trashcan':
        from .trashcan import TRASHCAN_CLASSES
        ids = range(1, len(TRASHCAN_CLASSES) + 1)
        return KnownInstances(TRASHCAN_CLASSES, list(ids),
                              dict(train=6065, val=1147))
    if name == 'coco':
        from mmdet.datasets import CocoDataset
        unused = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
        return KnownInstances(CocoDataset.METAINFO['classes'],
                              [i for i in range(1, 91) if i not in unused],
                              dict(train=118287, val=5000))
    raise ValueError(f'The data set {name!r} is not known; allowed are '
                     "'trashcan' and 'coco'.")


def check_instances(coco: dict,
                    classes: Optional[Sequence[str]] = None,
                    category_ids: Optional[Sequence[int]] = None,
                    num_images: Optional[int] = None,
                    img_dir: Optional[Union[str, Path]] = None
                    ) -> InstanceReport:
    """Check classes, images and masks of a COCO-format data set.

    Args:
        coco (dict): Content of the annotation file.
        classes (Sequence[str], optional): Names that the categories must
            have, in the order of the file. Defaults to None: any.
        category_ids (Sequence[int], optional): Their ids. Defaults to None:
            any.
        num_images (int, optional): Published number of images; another one
            is a warning. Defaults to None.
        img_dir (str or Path, optional): Folder of the images, which must be
            there in the noted sizes. Defaults to None: not looked at.

    Returns:
        InstanceReport: Errors, warnings and instances by class.
    """
    try:
        check_coco(coco)
    except (TypeError, ValueError) as error:
        return InstanceReport([str(error)], [], {})
    errors = _category_errors(coco, classes, category_ids)
    errors += _size_errors(coco)
    warnings = []
    found = len(coco['images'])
    if num_images is not None and found != num_images:
        warnings.append(f'The file has {found} images; {num_images} are '
                        'reported for this part.')
    if not errors:
        bad, odd = _mask_findings(coco)
        errors, warnings = errors + bad, warnings + odd
    names = {c['id']: str(c.get('name')) for c in coco['categories']}
    counts = dict.fromkeys(names.values(), 0)
    counts.update(
        Counter(names[ann['category_id']] for ann in coco['annotations']))
    empty = [name for name, count in counts.items() if count == 0]
    if empty:
        warnings.append(f'{len(empty)} classes have no instance: '
                        f'{some_of(empty)}.')
    if img_dir is not None:
        errors += file_errors(coco, Path(img_dir))
    return InstanceReport(errors, warnings, counts)


def _category_errors(coco: dict, classes: Optional[Sequence[str]],
                     category_ids: Optional[Sequence[int]]) -> List[str]:
    names = [str(c.get('name')) for c in coco['categories']]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        return [f'Categories share the name {some_of(twice)}.']
    if classes is not None and names != list(classes):
        missing = [name for name in classes if name not in names]
        unknown = [name for name in names if name not in classes]
        if not missing and not unknown:
            return [f'The categories have another order: {", ".join(names)}. '
                    'Labels are numbered in the order of the file.']
        return [
            f'The file has {len(names)} categories, expected are '
            f'{len(classes)}; missing: {some_of(missing)}; unknown: '
            f'{some_of(unknown)}.'
        ]
    ids = [c['id'] for c in coco['categories']]
    if category_ids is not None and ids != list(category_ids):
        wrong = [
            f'{name} {found} instead of {wanted}'
            for name, found, wanted in zip(names, ids, category_ids)
            if found != wanted
        ]
        return [f'Categories have other ids: {some_of(wrong)}.']
    return []


def _size_errors(coco: dict) -> List[str]:
    wrong = [
        file_name(img) for img in coco['images'] if not all(
            isinstance(img.get(side), int) and img[side] > 0
            for side in ('width', 'height'))
    ]
    return [
        f'{len(wrong)} images have no width and height in pixels: '
        f'{some_of(wrong)}.'
    ] if wrong else []


def _mask_findings(coco: dict) -> tuple:
    sizes = {i['id']: (i['height'], i['width']) for i in coco['images']}
    found: Dict[str, list] = dict(box=[], size=[], none=[], outside=[])
    for number, ann in enumerate(coco['annotations']):
        name = ann.get('id', f'number {number}')
        height, width = sizes[ann['image_id']]
        box = ann.get('bbox')
        if not isinstance(box, list) or len(box) != 4 or min(box[2:]) <= 0:
            found['box'].append(name)
        elif box[0] + box[2] <= 0 or box[1] + box[3] <= 0 or (
                box[0] >= width or box[1] >= height):
            found['outside'].append(name)
        mask = ann.get('segmentation')
        if isinstance(mask, dict):
            if list(mask.get('size') or ()) != [height, width]:
                found['size'].append(name)
        elif not mask or any(
                len(part) < 6 or len(part) % 2 for part in mask):
            found['none'].append(name)
    texts = dict(
        box='have no box (bbox) of positive width and height',
        size="have a mask of another size than their image's",
        none='have no mask, or polygons of fewer than three corners; they '
        'are left out of the training',
        outside='have a box outside of their image')
    lines = {
        key: f'{len(names)} annotations {texts[key]}; ids: {some_of(names)}.'
        for key, names in found.items() if names
    }
    errors = [lines[key] for key in ('box', 'size') if key in lines]
    return errors, [lines[key] for key in ('none', 'outside') if key in lines]


def file_errors(coco: dict, img_dir: Path) -> List[str]:
    """Compare images with what is noted of them.

    Args:
        coco (dict): ``images`` with ``file_name``, ``width`` and ``height``.
        img_dir (Path): Folder of the images.

    Returns:
        list[str]: A line on images that are missing, and one on images that
        cannot be read or have another size.
    """
    missing, wrong = [], []
    for img in coco['images']:
        path = img_dir / file_name(img)
        if not path.is_file():
            missing.append(file_name(img))
            continue
        try:
            size = image_size(str(path))
        except (OSError, ValueError):
            wrong.append(f'{file_name(img)} (no image)')
            continue
        noted = (img.get('width'), img.get('height'))
        # Sizes that are missing are an error already.
        if None not in noted and tuple(size) != noted:
            wrong.append(f'{file_name(img)} ({size[0]} x {size[1]}, noted '
                         f'{noted[0]} x {noted[1]})')
    errors = []
    if missing:
        errors.append(f'{len(missing)} of {len(coco["images"])} images are '
                      f'not in {img_dir}: {some_of(missing)}.')
    if wrong:
        errors.append(f'{len(wrong)} images differ from what the file says: '
                      f'{some_of(wrong)}.')
    return errors


def some_of(values: Sequence) -> str:
    """Return the first five values as text, and how many more there are."""
    if not values:
        return 'none'
    more = '' if len(values) <= 5 else f' and {len(values) - 5} more'
    return ', '.join(map(str, values[:5])) + more
