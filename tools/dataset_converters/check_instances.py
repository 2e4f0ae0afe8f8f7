# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Check a COCO-format annotation file, and that its images are there."""
import argparse
import sys
from pathlib import Path

from mmsemi.datasets.coco_files import check_no_leak, load_coco
from mmsemi.datasets.instance_checks import check_instances, known_instances


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Examples: python tools/dataset_converters/check_instances.py '
        'data/trashcan/instances_train_trashcan.json --img-dir '
        'data/trashcan/train --dataset trashcan --part train; python '
        'tools/dataset_converters/check_instances.py '
        'data/micrographs/annotations/instances_train.json --img-dir '
        'data/micrographs/train --classes austenite ferrite --apart-from '
        'data/micrographs/annotations/instances_val.json')
    parser.add_argument('ann_file', type=Path, help='COCO-format JSON')
    parser.add_argument(
        '--img-dir', type=Path, help='folder that its images must be in')
    expected = parser.add_mutually_exclusive_group()
    expected.add_argument(
        '--dataset',
        choices=['trashcan', 'coco'],
        help='published data set whose classes and ids it must have: '
        'TrashCan 1.0 (instance version) or COCO 2017')
    expected.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='classes that it must have, in their order')
    parser.add_argument(
        '--part',
        choices=['train', 'val'],
        help='with --dataset: part whose published number of images it '
        'should have; another number is a warning')
    parser.add_argument(
        '--apart-from',
        type=Path,
        nargs='+',
        default=[],
        metavar='FILE',
        help='other annotation files that must share no image with it, by '
        'file name')
    args = parser.parse_args()
    if args.part and not args.dataset:
        parser.error('--part needs --dataset')
    return args


def main() -> None:
    args = parse_args()
    expected = dict(classes=args.classes)
    if args.dataset:
        known = known_instances(args.dataset)
        expected = dict(
            classes=known.classes, category_ids=known.category_ids)
        if args.part:
            expected['num_images'] = known.num_images[args.part]
    try:
        coco = load_coco(args.ann_file)
        others = [load_coco(path) for path in args.apart_from]
    except (OSError, ValueError) as error:
        sys.exit(f'check_instances: {error}')
    report = check_instances(coco, img_dir=args.img_dir, **expected)
    errors = list(report.errors)
    for path, other in zip(args.apart_from, others):
        try:
            check_no_leak(coco, dict(images=[]), val=other)
        except ValueError as error:
            errors.append(f'{path}: {error}')
    for name, count in report.counts.items():
        print(f'{count:>8}  {name}')
    for text in report.warnings:
        print(f'warning: {text}')
    for text in errors:
        print(f'error: {text}')
    if errors:
        sys.exit(f'check_instances: {args.ann_file} has '
                 f'{len(errors)} error{"s" * (len(errors) > 1)}.')
    print(f'{args.ann_file}: {len(coco["images"])} images, '
          f'{len(coco["annotations"])} instances of {len(report.counts)} '
          'classes, no error.')


if __name__ == '__main__':
    main()
