# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Divide the training images of referring expressions into labelled ones and
others, as lists of file names for mmsemi.ReferringDataset(image_list=...).

    python tools/dataset_converters/split_refer.py \\
        data/coco/refer/refcoco-unc.json --percent 0.5 1 2 5

writes {stem}.semires@1.txt and {stem}.semires@1-unlabeled.txt beside the
file, into splits/, by the procedure that the results of SemiRES were made
with. --scheme seeded draws mmsemi's own splits, with any seed:
{stem}.seed0-fold0@1.txt.
"""
import argparse
import sys
from pathlib import Path

from mmengine.utils import track_iter_progress

from mmsemi.datasets.refer_files import read_annotations
from mmsemi.datasets.referring_splits import SCHEMES, split_referring
from mmsemi.datasets.semantic_sampling import new_split_stem
from mmsemi.datasets.semantic_splits import write_lists


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'ann_file', type=Path, help='JSON file from refer2json.py')
    parser.add_argument(
        '--percent',
        type=float,
        nargs='+',
        default=[0.5, 1, 2, 5, 10],
        help='percentages of labelled images (default: 0.5 1 2 5 10)')
    parser.add_argument(
        '--scheme',
        choices=SCHEMES,
        default='semires',
        help='semires: as published; seeded: a larger part of the same seed '
        'and fold holds a smaller one (default: semires)')
    parser.add_argument(
        '--seed',
        type=int,
        nargs='+',
        default=[0],
        help='default: 0, which is that of the published splits')
    parser.add_argument(
        '--fold',
        type=int,
        nargs='+',
        default=[0],
        help='of --scheme seeded: numbers of the draws (default: 0)')
    parser.add_argument(
        '--split',
        default='train',
        help='split whose images are divided (default: train)')
    parser.add_argument(
        '--out-dir',
        type=Path,
        help="where the lists go (default: splits/ in the file's folder)")
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace files that have other content')
    parser.add_argument(
        '--quiet', action='store_true', help='show no progress bar')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out_dir = args.out_dir or args.ann_file.parent / 'splits'
    jobs = [(percent, seed, fold) for seed in args.seed for fold in args.fold
            for percent in args.percent]
    written = []
    try:
        data = read_annotations(args.ann_file)
        for percent, seed, fold in jobs if args.quiet else \
                track_iter_progress(jobs):
            parts = split_referring(data, percent, seed, fold, args.scheme,
                                    args.split)
            stem = new_split_stem(percent, None, seed, fold,
                                  args.ann_file.stem)
            if args.scheme == 'semires':
                seeded = '' if seed == 0 else f'-seed{seed}'
                stem = f'{args.ann_file.stem}.semires{seeded}@{percent:g}'
            paths = write_lists(*parts, out_dir, stem, args.overwrite)
            written += [(path, set(part)) for path, part in zip(paths, parts)]
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f'split_refer: {error}')
    names = {image['image_id']: image['file_name'] for image in data['images']}
    refs = [
        names[ref['image_id']] for ref in data['refs']
        if ref['split'] == args.split
    ]
    for path, part in written:
        number = sum(name in part for name in refs)
        print(f'{path}: {len(part)} images, {number} refs')


if __name__ == '__main__':
    main()
