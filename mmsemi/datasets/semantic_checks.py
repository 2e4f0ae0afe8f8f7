# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Look at the files of an mmseg dataset before a training does."""
import os.path as osp
import warnings
from typing import Any, List, Optional, Sequence

import numpy as np
from mmseg.datasets import BaseSegDataset

from .semantic_sampling import read_mask
from .unlabeled import IMG_SUFFIXES, image_size

#: Losses of mmseg skip it, whatever the dataset's ignore_index is.
IGNORE_INDEX = 255


def check_semantic_dataset(dataset: Any, num_images: int = 100) -> None:
    """Refuse missing files, label values out of range and wrong sizes.

    All files must exist. The content is looked at of ``num_images`` samples,
    evenly spread over the dataset. Files of remote storage are not looked
    at, and of images that are no pictures (``.npy``, ``.nii.gz``) only
    whether they exist.

    Args:
        dataset (BaseSegDataset): mmseg dataset, with or without masks.
        num_images (int): Number of masks to read; 0 for all. Defaults to
            100.

    Raises:
        TypeError: If it is no mmseg dataset.
        FileNotFoundError: If a listed image or mask does not exist.
        ValueError: If the dataset is empty, if a mask holds a value that is
            neither a class nor ignored, cannot be read or is a colour
            picture, or if mask and image differ in size.
    """
    if not isinstance(dataset, BaseSegDataset):
        raise TypeError('dataset must be an mmseg BaseSegDataset, got '
                        f'{type(dataset).__name__}.')
    if num_images < 0:
        raise ValueError(f'num_images must be 0 (all) or more, got '
                         f'{num_images}.')
    name = f'{type(dataset).__name__} {dataset.ann_file or ""}'.strip()
    _load(dataset, name)
    number = len(dataset)
    if number == 0:
        raise ValueError(_empty_text(dataset, name))
    if dataset.backend_args and dataset.backend_args.get('backend') not in (
            None, 'local'):
        return
    infos = [dataset.get_data_info(i) for i in range(number)]
    for key, what in (('img_path', 'images'), ('seg_map_path', 'masks')):
        paths = [info[key] for info in infos if key in info]
        _check_exists([p for p in paths if '://' not in p], what, name)
    labelled = [
        info for info in infos if 'seg_map_path' in info
        and '://' not in info['seg_map_path'] and _is_picture(info)
    ]
    picked = spread(len(labelled), num_images)
    seen = set()
    for i in picked:
        seen |= _check_sample(dataset, labelled[i], name)
    if seen and seen <= {0, IGNORE_INDEX} and IGNORE_INDEX in seen and len(
            dataset.metainfo.get('classes') or ()) > 1:
        warnings.warn(
            f'{name}: {len(picked)} masks hold only the values 0 and 255, '
            'and 255 is ignored, so nothing but class 0 can be learned. If '
            '255 means foreground, write the masks with 1 instead.')


def spread(number: int, wanted: int) -> List[int]:
    """Choose indices evenly spread, the first and the last among them.

    Args:
        number (int): Number of items.
        wanted (int): How many indices to choose; 0 for all.

    Returns:
        list[int]: Ascending, different indices.
    """
    if wanted == 0 or wanted >= number:
        return list(range(number))
    return np.unique(np.linspace(0, number - 1, wanted).round()).astype(
        int).tolist()


def _load(dataset: BaseSegDataset, name: str) -> None:
    try:
        dataset.full_init()
    except ValueError as error:
        # What mmengine's BaseDataset says when it packs an empty list.
        if 'need at least one array to concatenate' in str(error):
            raise ValueError(_empty_text(dataset, name)) from error
        raise


def _empty_text(dataset: BaseSegDataset, name: str) -> str:
    where = (f'the list {dataset.ann_file} (ann_file) names no image'
             if dataset.ann_file else
             f'no file in {dataset.data_prefix.get("img_path")} '
             f'(data_prefix.img_path) ends with {dataset.img_suffix!r} '
             '(img_suffix)')
    return f'{name} is empty: {where}.'


def _check_exists(paths: Sequence[str], what: str, name: str) -> None:
    missing = [path for path in paths if not osp.isfile(path)]
    if not missing:
        return
    hint = 'Check data_root, data_prefix, img_suffix and seg_map_suffix.'
    if any(_has_no_stem(path) for path in missing):
        hint = 'The list has a blank line, which mmseg takes for an image.'
    elif what == 'masks' and any('SegmentationClass/' in p for p in missing):
        hint = ('The official SegmentationClass of VOC has masks of 2,913 '
                'images only; training lists need SegmentationClassAug: '
                "data_prefix=dict(seg_map_path='SegmentationClassAug').")
    raise FileNotFoundError(
        f'{name}: {len(missing)} of {len(paths)} {what} do not exist, among '
        f'them {", ".join(missing[:3])}. {hint}')


def _has_no_stem(path: str) -> bool:
    return osp.basename(path).startswith(('.', '_leftImg8bit', '_gtFine'))


def _is_picture(info: dict) -> bool:
    return all(info[key].lower().endswith(IMG_SUFFIXES)
               for key in ('img_path', 'seg_map_path'))


def _check_sample(dataset: BaseSegDataset, info: dict, name: str) -> set:
    """Check one sample; return the label values that a loss would see."""
    path = info['seg_map_path']
    mask = read_mask(path)
    width, height = image_size(info['img_path'])
    if mask.shape != (height, width):
        raise ValueError(
            f'{name}: the mask {path} has {mask.shape[1]} x {mask.shape[0]} '
            f'pixels (width x height), its image {info["img_path"]} has '
            f'{width} x {height}. They must be equal.')
    raw = np.unique(mask)
    number = len(dataset.metainfo.get('classes') or ())
    if not number:
        return set()
    labels = as_loaded(raw, dataset.reduce_zero_label, dataset.label_map)
    allowed = set(range(number)) | {IGNORE_INDEX, dataset.ignore_index}
    wrong = [int(v) for v, label in zip(raw, labels) if label not in allowed]
    if wrong:
        raise ValueError(
            f'{name}: the mask {path} holds the '
            f'value{"s" if len(wrong) > 1 else ""} {_some(wrong)}, but '
            f'{_allowed_text(dataset, number)}. '
            f'{_value_hint(dataset, wrong, raw, number)}')
    return set(labels.tolist())


def as_loaded(values: np.ndarray, reduce_zero_label: bool,
              label_map: Optional[dict]) -> np.ndarray:
    """Return what mmseg's ``LoadAnnotations`` makes of label values.

    Values above 255 stay as they are, although mmseg wraps them around.

    Args:
        values (ndarray): Integer label values of a file.
        reduce_zero_label (bool): Whether 0 becomes 255 and the other
            classes move down by one.
        label_map (dict[int, int], optional): New values of old ones.

    Returns:
        ndarray: As many label values.
    """
    labels = values.copy()
    if reduce_zero_label:
        labels = np.where((values == 0) | (values == 255), 255, values - 1)
    out = labels.copy()
    for old, new in (label_map or {}).items():
        out[labels == old] = new
    return out


def _allowed_text(dataset: BaseSegDataset, number: int) -> str:
    text = f'the {number} classes allow 0 to {number - 1}'
    if dataset.label_map is not None:
        text = ('the classes in the file are 0 to '
                f'{max(dataset.label_map)} (metainfo picks {number} of them)')
    if dataset.reduce_zero_label:
        last = number if dataset.label_map is None else \
            max(dataset.label_map) + 1
        text = (f'with reduce_zero_label=True the {number} classes are 1 to '
                f'{last} and 0 is ignored')
    ignored = sorted({IGNORE_INDEX, dataset.ignore_index})
    return f'{text}, and {" and ".join(map(str, ignored))} for ignored pixels'


def _value_hint(dataset: BaseSegDataset, wrong: List[int], raw: np.ndarray,
                number: int) -> str:
    if max(wrong) > 255:
        return ('Masks have 8 bits per pixel; this looks like a map of '
                'instances.')
    if wrong == [number] and not dataset.reduce_zero_label:
        return ('If 0 is no class in these masks (classes count from 1), set '
                'reduce_zero_label=True on the dataset; else metainfo lacks '
                'a class.')
    if dataset.seg_map_suffix.endswith('_gtFine_labelTrainIds.png'):
        return ("labelTrainIds are made by mmseg's "
                'tools/dataset_converters/cityscapes.py; these look like '
                'other ids.')
    if len(wrong) > 1 or max(wrong) > 2 * number:
        return ('Such values come of a colour mask that was turned into grey '
                'ones: save the class numbers themselves, or the palette '
                "image (mode 'P'), whose indices are the class numbers. "
                'If metainfo lacks classes, add them.')
    return 'Correct the mask, or add the class to metainfo.'


def _some(values: Sequence[int]) -> str:
    more = '' if len(values) <= 8 else f' and {len(values) - 8} more'
    return ', '.join(map(str, values[:8])) + more
