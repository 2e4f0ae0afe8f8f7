# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Check annotations of referring expressions, and that images are there."""
import argparse
import sys
from pathlib import Path

from mmengine.utils import track_iter_progress

from mmsemi.datasets.refer_files import read_annotations
from mmsemi.datasets.referring import read_image_list
from mmsemi.datasets.referring_checks import check_referring


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Example: python tools/dataset_converters/check_referring.py '
        'data/coco/refer/refcoco-unc.json --img-dir data/coco/train2014 '
        '--lists data/coco/refer/splits/refcoco-unc.semires@1.txt '
        'data/coco/refer/splits/refcoco-unc.semires@1-unlabeled.txt')
    parser.add_argument(
        'ann_file', type=Path, help='JSON file from refer2json.py')
    parser.add_argument(
        '--img-dir', type=Path, help='folder that its images must be in')
    parser.add_argument(
        '--lists',
        nargs='+',
        default=[],
        metavar='FILE',
        help='lists of images of --split that must share none, such as the '
        'labelled and the unlabelled part')
    parser.add_argument(
        '--split',
        default='train',
        help='split that the lists are of (default: train)')
    parser.add_argument(
        '--quiet', action='store_true', help='show no progress bar')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        data = read_annotations(args.ann_file)
        lists = [read_image_list(path) for path in args.lists]
    except (OSError, ValueError) as error:
        sys.exit(f'check_referring: {error}')
    report = check_referring(
        data,
        img_dir=args.img_dir,
        lists=lists,
        split=args.split,
        track=iter if args.quiet else track_iter_progress)
    if not args.quiet:
        print()
    for split, (refs, images, sentences) in report.counts.items():
        print(f'{split}: {refs} refs, {images} images, {sentences} sentences')
    for text in report.warnings:
        print(f'warning: {text}')
    for text in report.errors:
        print(f'error: {text}')
    if report.errors:
        sys.exit(f'check_referring: {args.ann_file} has {len(report.errors)} '
                 f'error{"s" * (len(report.errors) > 1)}.')
    print(f'{args.ann_file}: no error.')


if __name__ == '__main__':
    main()
