# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Split a COCO-format file into labelled and unlabelled JSON pairs.

With --hold-out or --folds, divide a labelled file in two instead, to measure
the calibration of a teacher on images that it has not learned.
"""
import argparse
import sys
from collections import Counter
from pathlib import Path

from mmsemi.datasets.calibration_split import (halve_images, hold_out_images,
                                               missing_classes, write_parts)
from mmsemi.datasets.splits import (check_no_leak, load_coco, split_coco,
                                    split_coco_k_shot, split_stem, write_split)

# Options that only the labelled and unlabelled pairs have.
PAIR_OPTIONS = ('percent', 'k_shot', 'seed', 'fold', 'scheme', 'drop_classes',
                'allow_fewer', 'keep_hidden_labels')
ROW = '{:<44} {:>8} {:>10} {:>9}  {}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Examples: python tools/dataset_converters/split_coco.py '
        '--ann-file data/coco/annotations/instances_train2017.json '
        '--out-dir data/coco/semi_anns --percent 1 2 5 10 --fold 1 '
        '--scheme mmdet; then python tools/dataset_converters/split_coco.py '
        '--ann-file data/coco/semi_anns/instances_train2017.1@10.json '
        '--out-dir data/coco/semi_anns --hold-out 0.1')
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
    halves = parser.add_mutually_exclusive_group()
    halves.add_argument(
        '--hold-out',
        type=float,
        metavar='FRACTION',
        help='instead of pairs, set this share of the labelled images aside, '
        'up to 0.5, without emptying rare classes: STEM-fit.json and '
        'STEM-calib.json')
    halves.add_argument(
        '--folds',
        type=int,
        choices=[2],
        help='instead of pairs, write two halves of the labelled images, for '
        'two teachers each measured on the other half: STEM-fold0.json and '
        'STEM-fold1.json')
    parser.add_argument(
        '--hold-out-images',
        type=int,
        nargs=2,
        default=(50, 2000),
        metavar=('MIN', 'MAX'),
        help='with --hold-out: fewest images set aside, though never more '
        'than half, and most (default: 50 2000)')
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
    if args.hold_out is not None or args.folds is not None:
        for name in PAIR_OPTIONS:
            if getattr(args, name) != parser.get_default(name):
                parser.error(f'--{name.replace("_", "-")} does not go with '
                             '--hold-out or --folds')
    if args.hold_out is None and args.hold_out_images != (50, 2000):
        parser.error('--hold-out-images needs --hold-out')
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


def write_halves(args: argparse.Namespace) -> None:
    """Write the two parts of a labelled file."""
    coco = load_coco(args.ann_file)
    held = None
    if args.hold_out is None:
        parts = dict(zip(('fold0', 'fold1'), halve_images(coco)))
    else:
        low, high = args.hold_out_images
        held = hold_out_images(
            coco, args.hold_out, min_images=low, max_images=high)
        parts = dict(fit=held.fit, calib=held.calib)
    if args.val_ann is not None:
        check_no_leak(*parts.values(), val=load_coco(args.val_ann))
    paths = write_parts(parts, args.out_dir, args.ann_file.stem,
                        args.overwrite)
    print_header()
    for path, part in zip(paths, parts.values()):
        print(row(path, part, coco))
    for path, part in zip(paths, parts.values()):
        missing = missing_classes(coco, part)
        if missing:
            print(f'{len(missing)} classes are not in {path.name}: '
                  f'{", ".join(missing)}')
    if held is not None and len(held.calib['images']) < held.wanted:
        print(f'{len(held.calib["images"])} images are held out instead of '
              f'{held.wanted}: rare classes need the others.')


def print_header() -> None:
    print(ROW.format('file', 'images', 'instances', 'classes',
                     'rarest class'))


def make_splits(args: argparse.Namespace) -> None:
    """Write all pairs that the arguments ask for."""
    coco = load_coco(args.ann_file)
    val = None if args.val_ann is None else load_coco(args.val_ann)
    sizes = [dict(percent=p) for p in args.percent]
    sizes += [dict(shots=k) for k in args.k_shot]
    jobs = [(size, seed, fold) for seed in args.seed for fold in args.fold
            for size in sizes]
    print_header()
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
        if args.hold_out is not None or args.folds is not None:
            write_halves(args)
        else:
            make_splits(args)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f'split_coco: {error}')


if __name__ == '__main__':
    main()
