# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The embedded data: digit scenes in COCO and mmseg format, from a seed.

Long-tailed ones are in LVIS's format, which is COCO's with a few fields more.
Scenes with referring expressions have those in a file of their own.
"""
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import mmcv
import numpy as np
import pycocotools.mask as mask_utils
from rich.progress import track

from .digit_scenes import (DIGIT_CLASSES, SPLITS, DigitScene,
                           DigitSceneComposer, check_int, class_frequencies)
from .digits_referring import (REFERRING_FILE, ReferringSceneComposer,
                               describe_scene, referring_annotations)
from .splits import split_coco, split_coco_k_shot, split_stem, write_split
from .text_files import lines_text, write_texts

INFO_FILE = 'digits.json'
# Raised whenever the same parameters give other scenes than before.
GENERATOR_VERSION = 1
# A class is rare if it is drawn at most so often as the most frequent one,
# common if less than half as often.
RARE_SHARE, FREQUENT_SHARE = 0.1, 0.5


def make_digits(out_dir: os.PathLike,
                num_train: int = 2000,
                num_val: int = 300,
                image_size: int = 64,
                digits_per_scene: Optional[Tuple[int, int]] = None,
                long_tail: float = 1.0,
                max_overlap: float = 0.1,
                seed: int = 0,
                percents: Sequence[float] = (1, 2, 5, 10, 100),
                split_seeds: Sequence[int] = (0, ),
                overwrite: bool = False,
                progress: bool = False,
                shots: Sequence[int] = (),
                referring: bool = False) -> Path:
    """Write a data set of digit scenes, or reuse the one that is there.

    The folder gets ``train/`` and ``val/`` (PNG images), ``masks/train``
    and ``masks/val`` (mmseg label maps: 0 background, 1-10 the classes
    zero-nine), ``annotations/instances_{train,val}.json`` (COCO; masks as
    compressed RLE), a labelled and an unlabelled JSON per split, the same
    splits as list files of mmseg in ``splits/`` with ``splits/val.txt``,
    and last ``digits.json`` with the parameters and a checksum. Everything
    is built beside the folder and moved in one step, so a killed run leaves
    no half data set. Equal arguments give equal bytes.

    With a long tail the annotations have what LVIS v1 adds to COCO:
    categories a ``frequency`` by :func:`frequency_letters`, images a
    ``coco_url``, ``neg_category_ids`` and ``not_exhaustive_category_ids``;
    every scene is annotated exhaustively.

    With ``referring`` the scenes are those of
    :class:`ReferringSceneComposer`, ``annotations/referring.json`` holds
    two or three expressions of a digit, for training and validation, in the
    format of :mod:`mmsemi.datasets.refer_files` (file names start with
    ``train/`` or ``val/``), and ``splits/`` has the splits once more as
    lists of these file names, ``referring.seed0-fold0@2[-unlabeled].txt``.

    Args:
        out_dir (path): Folder of the data set; made where missing.
        num_train (int): Training scenes, at least 1. Defaults to 2000.
        num_val (int): Validation scenes, at least 1; always balanced.
            Defaults to 300.
        image_size (int): Pixels. Defaults to 64.
        digits_per_scene (tuple[int, int], optional): Least and most digits
            in a scene. Defaults to None: (1, 3), and (2, 4) with
            ``referring``.
        long_tail (float): Imbalance of the training scenes' classes, see
            :func:`class_frequencies`. Defaults to 1.0.
        max_overlap (float): See :class:`DigitSceneComposer`. Defaults
            to 0.1.
        seed (int): Seed of the scenes, at least 0. Defaults to 0.
        percents (Sequence[float]): Labelled percentages to write splits
            for. Unlabelled files keep their annotations, to measure
            pseudo-labels with. Defaults to (1, 2, 5, 10, 100).
        split_seeds (Sequence[int]): Seeds of the splits. Defaults to (0,).
        overwrite (bool): Replace a folder of digits data made with other
            parameters, with everything in it. Defaults to False.
        progress (bool): Show a progress bar. Defaults to False.
        shots (Sequence[int]): Numbers of labelled instances per class to
            write splits for as well; see :func:`split_coco_k_shot`.
            Defaults to ().
        referring (bool): Whether to write scenes with referring
            expressions; not with a long tail. Defaults to False.

    Returns:
        Path: ``out_dir``.

    Raises:
        ValueError: If a value is out of its range.
        FileExistsError: If the folder holds something else.
    """
    check_int('num_train', num_train, 1)
    check_int('num_val', num_val, 1)
    check_int('seed', seed, 0)
    for percent in percents:
        if not 0 < percent <= 100:
            raise ValueError('percents must be above 0 and at most 100, got '
                             f'{percent!r}')
    for number in shots:
        check_int('shots', number, 1)
    for split_seed in split_seeds:
        check_int('split_seeds', split_seed, 0)
    if digits_per_scene is None:
        digits_per_scene = (2, 4) if referring else (1, 3)
    scene_options = dict(
        image_size=image_size,
        digits_per_scene=digits_per_scene,
        max_overlap=max_overlap)
    if referring:
        if long_tail != 1:
            raise ValueError('long_tail must be 1 with referring expressions, '
                             f'got {long_tail!r}')
        composers = {
            split: ReferringSceneComposer(split, **scene_options)
            for split in SPLITS
        }
    else:
        composers = dict(
            train=DigitSceneComposer(
                'train', long_tail=long_tail, **scene_options),
            val=DigitSceneComposer('val', **scene_options))
    parameters = dict(
        generator_version=GENERATOR_VERSION,
        num_train=num_train,
        num_val=num_val,
        long_tail=float(long_tail),
        seed=seed,
        image_size=image_size,
        digits_per_scene=list(digits_per_scene),
        max_overlap=float(max_overlap))
    if long_tail > 1:
        parameters['annotation_format'] = 'lvis'
    if referring:
        parameters['annotation_format'] = 'referring'

    out_dir = Path(out_dir)
    if _is_reusable(out_dir, parameters, overwrite):
        _write_splits(out_dir, percents, shots, split_seeds)
        return out_dir
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
            prefix=f'.{out_dir.name}-', dir=out_dir.parent) as tmp:
        # A folder of its own, because mkdtemp's is closed to other users.
        staged = Path(tmp) / 'data'
        parts, sentences = {}, {split: {} for split in SPLITS}
        for split, number in zip(SPLITS, (num_train, num_val)):
            annotations = _write_scenes(staged, split, number,
                                        composers[split], seed, progress,
                                        sentences[split])
            if long_tail > 1:
                _add_lvis_fields(annotations, split, long_tail)
            _write_json(staged / f'annotations/instances_{split}.json',
                        annotations)
            parts[split] = annotations
        if referring:
            _write_json(staged / REFERRING_FILE,
                        referring_annotations(parts, sentences))
        _write_splits(staged, percents, shots, split_seeds)
        info = dict(parameters=parameters, checksum=checksum(staged))
        _write_json(staged / INFO_FILE, info)
        if out_dir.exists():
            # Moved first and deleted after: never a half deleted data set.
            out_dir.rename(Path(tmp) / 'old')
        staged.rename(out_dir)
    return out_dir


def checksum(root: os.PathLike) -> str:
    """Return the SHA-256 over the generated files, names and bytes.

    Labelled/unlabelled splits do not count: they can be added later.

    Args:
        root (path): Folder of the data set.

    Returns:
        str: Hexadecimal digest.
    """
    root = Path(root)
    digest = hashlib.sha256()
    files = [root / f'annotations/instances_{split}.json' for split in SPLITS]
    if (root / REFERRING_FILE).exists():
        files.append(root / REFERRING_FILE)
    for folder in ('train', 'val', 'masks/train', 'masks/val'):
        files += sorted((root / folder).glob('*.png'))
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode())
        digest.update(file.read_bytes() if file.is_file() else b'missing')
    return digest.hexdigest()


def frequency_letters(long_tail: float) -> Tuple[str, ...]:
    """Return which classes are rare, common and frequent.

    Args:
        long_tail (float): See :func:`class_frequencies`.

    Returns:
        tuple[str]: 'r', 'c' or 'f' for each class. Rare classes are drawn at
        most a tenth as often as the most frequent one, which is also what
        lies between LVIS's limits of 10 and 100 images; frequent ones at
        least half as often.
    """
    frequencies = class_frequencies(long_tail)
    shares = frequencies / frequencies.max()
    return tuple('r' if share <= RARE_SHARE else
                 'c' if share < FREQUENT_SHARE else 'f' for share in shares)


def _is_reusable(out_dir: Path, parameters: dict, overwrite: bool) -> bool:
    """Tell whether the folder holds this very data; refuse foreign files."""
    if not out_dir.exists():
        return False
    if not out_dir.is_dir():
        raise FileExistsError(f'out_dir must be a folder, {out_dir} is a file')
    info_file = out_dir / INFO_FILE
    if not info_file.is_file():
        if any(out_dir.iterdir()):
            raise FileExistsError(
                f'out_dir {out_dir} holds files but no {INFO_FILE}: it was '
                'not made by mmsemi and is left alone. Choose another folder.')
        return False
    if overwrite:
        return False
    try:
        info = json.loads(info_file.read_text())
        found, digest = dict(info['parameters']), info['checksum']
    except (ValueError, KeyError, TypeError):
        raise FileExistsError(f'{info_file} is damaged. Make the data anew '
                              'with overwrite=True (--overwrite).') from None
    if found != parameters:
        differing = ', '.join(
            f'{name}: {found.get(name)} there, {value} asked for'
            for name, value in parameters.items() if found.get(name) != value)
        raise FileExistsError(
            f'out_dir {out_dir} holds digits data made with other parameters '
            f'({differing}). Choose another folder or replace it with '
            'overwrite=True (--overwrite).')
    if digest != checksum(out_dir):
        raise FileExistsError(
            f'out_dir {out_dir} holds digits data that were changed after '
            'they were made. Make them anew with overwrite=True '
            '(--overwrite).')
    return True


def _write_scenes(root: Path, split: str, number: int,
                  composer: DigitSceneComposer, seed: int, progress: bool,
                  sentences: Dict[int, List[str]]) -> dict:
    """Write images and label maps, return annotations in COCO's format.

    Sentences of digits, where the composer's scenes have them, are put into
    ``sentences`` by the annotation's id.
    """
    images, annotations = [], []

    def scenes() -> Iterator[Tuple[int, DigitScene]]:
        for index in range(number):
            # A generator per scene: scene i is the same in a set of any
            # length.
            rng = np.random.default_rng([seed, SPLITS.index(split), index])
            yield index, composer.compose(rng)

    for index, scene in track(
            scenes(),
            description=f'{split} scenes',
            total=number,
            disable=not progress):
        name = f'{index:06d}.png'
        mmcv.imwrite(mmcv.rgb2bgr(scene.image), str(root / split / name))
        labels = (scene.labels + 1)[:, None, None]
        label_map = (scene.masks * labels).sum(axis=0).astype(np.uint8)
        mmcv.imwrite(label_map, str(root / 'masks' / split / name))
        height, width = scene.image.shape[:2]
        images.append(
            dict(id=index + 1, file_name=name, height=height, width=width))
        if scene.colors:
            # A generator of its own: other expressions, same scenes.
            rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
            sentences.update(
                enumerate(describe_scene(scene, rng),
                          len(annotations) + 1))
        for mask, label in zip(scene.masks, scene.labels):
            rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index + 1,
                    category_id=int(label) + 1,
                    bbox=mask_utils.toBbox(rle).tolist(),
                    area=int(mask.sum()),
                    iscrowd=0,
                    segmentation=dict(
                        size=[height, width],
                        counts=rle['counts'].decode('ascii'))))
    categories = [
        dict(id=i + 1, name=name, supercategory='digit')
        for i, name in enumerate(DIGIT_CLASSES)
    ]
    return dict(images=images, annotations=annotations, categories=categories)


def _add_lvis_fields(coco: dict, split: str, long_tail: float) -> None:
    """Add what LVIS v1 has beside COCO's fields."""
    for category, letter in zip(coco['categories'],
                                frequency_letters(long_tail)):
        category['frequency'] = letter
    present = {image['id']: set() for image in coco['images']}
    for annotation in coco['annotations']:
        present[annotation['image_id']].add(annotation['category_id'])
    every = {category['id'] for category in coco['categories']}
    for image in coco['images']:
        image.update(
            coco_url=f'{split}/{image["file_name"]}',
            neg_category_ids=sorted(every - present[image['id']]),
            not_exhaustive_category_ids=[])


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _write_splits(root: Path, percents: Sequence[float], shots: Sequence[int],
                  split_seeds: Sequence[int]) -> None:
    """Write the labelled/unlabelled pairs; equal files are left alone.

    Each pair is written twice, as COCO files and as mmseg's lists.
    """
    val = json.loads((root / 'annotations/instances_val.json').read_text())
    write_texts({root / 'splits/val.txt': _image_list(val)})
    folder = root / 'annotations'
    coco = json.loads((folder / 'instances_train.json').read_text())
    jobs = [('percents', split_coco, dict(percent=percent, seed=seed))
            for seed in split_seeds for percent in percents]
    jobs += [('shots', split_coco_k_shot, dict(shots=number, seed=seed))
             for seed in split_seeds for number in shots]
    for field, split, options in jobs:
        try:
            labeled, unlabeled = split(
                coco, keep_hidden_labels=True, **options)
        except ValueError as error:
            raise ValueError(f'{field}: {error}') from None
        write_split(labeled, unlabeled, folder,
                    split_stem('instances_train', **options))
        stem = split_stem('train', **options)
        lists = {
            f'{stem}.txt': _image_list(labeled),
            f'{stem}-unlabeled.txt': _image_list(unlabeled)
        }
        if (root / REFERRING_FILE).is_file():
            stem = split_stem('referring', **options)
            lists[f'{stem}.txt'] = _referring_list(labeled)
            lists[f'{stem}-unlabeled.txt'] = _referring_list(unlabeled)
        write_texts({
            root / 'splits' / name: text
            for name, text in lists.items()
        })


def _image_list(coco: dict) -> str:
    return lines_text([Path(img['file_name']).stem for img in coco['images']])


def _referring_list(coco: dict) -> str:
    return lines_text([f'train/{img["file_name"]}' for img in coco['images']])
