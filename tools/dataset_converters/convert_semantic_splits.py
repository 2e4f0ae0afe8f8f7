# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Make mmseg's list files: convert published splits or draw new ones."""
import argparse
import sys
import warnings
from pathlib import Path

from mmsemi.datasets.semantic_sampling import (class_shares, classes_in_masks,
                                               find_pairs, new_split_stem,
                                               read_names, split_by_classes)
from mmsemi.datasets.semantic_splits import (check_no_overlap, convert_split,
                                             missing_files, mmseg_lines,
                                             write_lists)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(
        dest='command', required=True, metavar='convert | new')
    add_convert(commands)
    add_new(commands)
    return parser.parse_args()


def add_convert(commands: argparse._SubParsersAction) -> None:
    """Add the options that read published lists."""
    parser = commands.add_parser(
        'convert',
        help='published lists of Pascal VOC and Cityscapes',
        description='Read published lists of Pascal VOC or Cityscapes '
        '(UniMatch-, U2PL- and CPS-type lines), tell by their hash which '
        'split they are, refuse overlaps, name missing images and write the '
        'lists that mmseg reads.',
        epilog='Example: python tools/dataset_converters/'
        'convert_semantic_splits.py convert --labeled splits/pascal/92/'
        'labeled.txt --unlabeled splits/pascal/92/unlabeled.txt --val '
        'splits/pascal/val.txt --data-root data/VOCdevkit/VOC2012 --out-dir '
        'data/VOCdevkit/VOC2012/splits')
    parser.add_argument(
        '--labeled', type=Path, required=True, help='list of labelled images')
    parser.add_argument(
        '--unlabeled', type=Path, help='list of unlabelled images')
    parser.add_argument(
        '--train',
        type=Path,
        help='list of all training images; without --unlabeled, those that '
        'are not labelled are the unlabelled ones')
    parser.add_argument(
        '--val',
        type=Path,
        help='validation list that must share no image with the others')
    parser.add_argument(
        '--data-root',
        type=Path,
        help='folder of the data set; given, images and masks must exist')
    parser.add_argument(
        '--mask-dir',
        help='folder of the masks in --data-root (default: '
        'SegmentationClassAug for VOC, gtFine/train for Cityscapes)')
    parser.add_argument(
        '--out-dir', type=Path, required=True, help='where the lists go')
    parser.add_argument(
        '--name',
        help='file name of the lists without suffix (default: protocol and '
        'fraction, such as blended-cps-1over8; that of --labeled if the list '
        'is not known)')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace files that have other content')
    parser.set_defaults(run=convert)


def add_new(commands: argparse._SubParsersAction) -> None:
    """Add the options that draw new splits."""
    parser = commands.add_parser(
        'new',
        help='new splits of any folder of images and masks',
        description='Draw labelled images from a folder of images with a '
        'mask for each. The draw is seeded, and every class stays in the '
        'labelled part.',
        epilog='Example: python tools/dataset_converters/'
        'convert_semantic_splits.py new --img-dir data/polyps/images '
        '--mask-dir data/polyps/masks --img-suffix .png --percent 5 10 '
        '--out-dir data/polyps/splits')
    parser.add_argument(
        '--img-dir', type=Path, required=True, help='folder of images')
    parser.add_argument(
        '--mask-dir', type=Path, required=True, help='folder of masks')
    parser.add_argument(
        '--img-suffix',
        default='.jpg',
        help='what image files end with (default: .jpg)')
    parser.add_argument(
        '--mask-suffix',
        default='.png',
        help='what mask files end with instead (default: .png)')
    sizes = parser.add_mutually_exclusive_group(required=True)
    sizes.add_argument(
        '--percent',
        type=float,
        nargs='+',
        default=[],
        help='percentages of labelled images')
    sizes.add_argument(
        '--count',
        type=int,
        nargs='+',
        default=[],
        help='numbers of labelled images')
    parser.add_argument(
        '--seed', type=int, nargs='+', default=[0], help='default: 0')
    parser.add_argument(
        '--fold', type=int, nargs='+', default=[0], help='default: 0')
    parser.add_argument(
        '--train',
        type=Path,
        help='list of names to draw from (default: all images)')
    parser.add_argument(
        '--val',
        type=Path,
        help='list of names that must not be among the images')
    parser.add_argument(
        '--ignore-index',
        type=int,
        default=255,
        help='mask value that is no class (default: 255)')
    parser.add_argument(
        '--drop-classes',
        action='store_true',
        help='do not swap images to keep every class in the labelled part')
    parser.add_argument(
        '--out-dir', type=Path, required=True, help='where the lists go')
    parser.add_argument(
        '--name',
        default='train',
        help='what file names begin with (default: train)')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace files that have other content')
    parser.add_argument(
        '--quiet', action='store_true', help='show no progress bar')
    parser.set_defaults(run=make_new)


def convert(args: argparse.Namespace) -> None:
    """Convert one published split."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        split = convert_split(args.labeled, args.unlabeled, args.train,
                              args.val)
    for warning in caught:
        print(f'warning: {warning.message}', file=sys.stderr)
    if args.data_root is not None:
        problems = missing_files(split, args.data_root, args.mask_dir)
        if problems:
            raise FileNotFoundError(' '.join(problems))
    known = split.known
    stem = args.name or (known.stem if known else args.labeled.stem)
    unlabeled = None
    if args.unlabeled is not None or args.train is not None:
        unlabeled = mmseg_lines(split.dataset, split.unlabeled)
    paths = write_lists(
        mmseg_lines(split.dataset, split.labeled), unlabeled, args.out_dir,
        stem, args.overwrite)
    print(f'{split.dataset}: {known or "no published split"}')
    for path, part in zip(paths, (split.labeled, split.unlabeled)):
        print(f'{path}: {len(part)} images')


def make_new(args: argparse.Namespace) -> None:
    """Draw all splits that the arguments ask for."""
    names = None if args.train is None else read_names(args.train)
    names = find_pairs(args.img_dir, args.mask_dir, args.img_suffix,
                       args.mask_suffix, names)
    if args.val is not None:
        check_no_overlap(dict(training=names, validation=read_names(args.val)))
    classes = classes_in_masks(args.mask_dir, names, args.mask_suffix,
                               args.ignore_index, not args.quiet)
    sizes = [(percent, None) for percent in args.percent]
    sizes += [(None, count) for count in args.count]
    for seed, fold, size in ((s, f, size) for s in args.seed
                             for f in args.fold for size in sizes):
        parts = split_by_classes(
            classes,
            *size,
            seed=seed,
            fold=fold,
            keep_all_classes=not args.drop_classes)
        stem = new_split_stem(*size, seed, fold, args.name)
        paths = write_lists(*parts, args.out_dir, stem, args.overwrite)
        for path, part in zip(paths, parts):
            print(f'{path}: {len(part)} images, {rarest(classes, part)}')


def rarest(classes: dict, part: list) -> str:
    """Describe the class that fewest images of a part hold."""
    shares = class_shares(classes, part)
    value = min(shares, key=lambda v: (shares[v], v))
    present = sum(map(bool, shares.values()))
    return (f'{present} of {len(shares)} classes, class {value} in '
            f'{shares[value]} images')


def main() -> None:
    args = parse_args()
    try:
        args.run(args)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f'convert_semantic_splits: {error}')


if __name__ == '__main__':
    main()
