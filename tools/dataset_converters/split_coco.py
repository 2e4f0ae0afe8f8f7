# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Split a COCO-format file into labelled and unlabelled JSON pairs."""
import argparse
import sys
from collections import Counter
from pathlib import Path

from mmsemi.datasets.splits import (check_no_leak, load_coco, split_coco,
                                    split_coco_k_shot, split_stem, write_split)

ROW = '{:<44} {:>8} {:>10} {:>9}  {}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='Example: python tools/dataset_converters/split_coco.py '
        '--ann-file data/coco/annotations/instances_train2017.json '
        '--out-dir data/coco/semi_anns --percent 1 2 5 10 --fold 1 '
        '--scheme mmdet')
    parser.add_argument(
        '--ann-file', type=Path, required=True, help='COCO-format JSON')
    parser.add_argument(
        '--out-dir', type=Path, required=True, help='where the pairs go')
    parser.add_argument(
        '--percent',
        type=float,
        nargs='+',
        default=[],
        help='percentages of labelled images (default: 1 2 5 10, unless '
        '--k-shot is given)')
    parser.add_argument(
        '--k-shot',
        type=int,
        nargs='+',
        default=[],
        help='numbers of labelled instances per class')
    parser.add_argument(
        '--seed', type=int, nargs='+', default=[0], help='default: 0')
    parser.add_argument(
        '--fold', type=int, nargs='+', default=[0], help='default: 0')
    parser.add_argument(
        '--scheme',
        choices=['seeded', 'mmdet'],
        default='seeded',
        help="mmdet: the images and file names of mmdet's own tool, which "
        'draws with replacement and has no seed but the fold')
    parser.add_argument(
        '--val-ann',
        type=Path,
        help='validation JSON that must share no file name with the parts; '
        'for files of one folder, or names that contain the folder')
    parser.add_argument(
        '--drop-classes',
        action='store_true',
        help='do not swap images to keep every class in the labelled part')
    parser.add_argument(
        '--allow-fewer',
        action='store_true',
        help='with --k-shot: take all instances of a class that has fewer')
    parser.add_argument(
        '--keep-hidden-labels',
        action='store_true',
        help='leave the annotations in the unlabelled file, to measure '
        'pseudo-labels')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace files that have other content')
    args = parser.parse_args()
    if not args.percent and not args.k_shot:
        args.percent = [1, 2, 5, 10]
    if args.k_shot and args.scheme == 'mmdet':
        parser.error('--scheme mmdet has no --k-shot')
    return args


def row(path: Path, part: dict, source: dict) -> str:
    """Describe one part in a line of the table."""
    names = {c['id']: c.get('name', c['id']) for c in source['categories']}
    present = {ann['category_id'] for ann in source['annotations']}
    counts = Counter(ann['category_id'] for ann in part['annotations'])
    classes = f'{len(counts)}/{len(present)}'
    rarest = '-'
    if part['annotations']:
        rare = min(present, key=lambda c: (counts[c], c))
        rarest = f'{names[rare]} ({counts[rare]})'
    return ROW.format(path.name, len(part['images']),
                      len(part['annotations']), classes, rarest)


def make_splits(args: argparse.Namespace) -> None:
    """Write all pairs that the arguments ask for."""
    coco = load_coco(args.ann_file)
    val = None if args.val_ann is None else load_coco(args.val_ann)
    sizes = [dict(percent=p) for p in args.percent]
    sizes += [dict(shots=k) for k in args.k_shot]
    jobs = [(size, seed, fold) for seed in args.seed for fold in args.fold
            for size in sizes]
    print(ROW.format('file', 'images', 'instances', 'classes',
                     'rarest class'))
    for size, seed, fold in jobs:
        common = dict(
            seed=seed, fold=fold, keep_hidden_labels=args.keep_hidden_labels)
        if 'shots' in size:
            parts = split_coco_k_shot(
                coco, allow_fewer=args.allow_fewer, **size, **common)
        else:
            parts = split_coco(
                coco,
                keep_all_classes=not args.drop_classes,
                scheme=args.scheme,
                **size,
                **common)
        check_no_leak(*parts, val=val)
        stem = split_stem(
            args.ann_file.stem,
            seed=seed,
            fold=fold,
            scheme=args.scheme,
            **size)
        paths = write_split(
            *parts, args.out_dir, stem, overwrite=args.overwrite)
        for path, part in zip(paths, parts):
            print(row(path, part, coco))


def main() -> None:
    args = parse_args()
    try:
        make_splits(args)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f'split_coco: {error}')


if __name__ == '__main__':
    main()
