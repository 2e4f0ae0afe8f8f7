# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Convert RefCOCO, RefCOCO+ or G-Ref into one JSON file for training.

Reads {root}/{dataset}/instances.json and {root}/{dataset}/refs(partition).p,
checks that they fit each other and hold what is published, and writes
annotations that need neither of them:

    python tools/dataset_converters/refer2json.py data/refer \\
        --dataset refcoco --partition unc \\
        --out data/coco/refer/refcoco-unc.json

A pickle from an unofficial mirror could run any command. This tool loads
plain values only and refuses everything else.
"""
import argparse
import hashlib
import sys
from pathlib import Path

from mmengine.utils import ProgressBar

from mmsemi.datasets.coco_files import load_coco
from mmsemi.datasets.refer_files import (KNOWN_COUNTS, convert_refs, load_refs,
                                         split_counts, write_annotations)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'root', type=Path, help='folder with a folder for each data set')
    known = '; '.join(' '.join(pair) for pair in KNOWN_COUNTS)
    parser.add_argument(
        '--dataset', required=True, help=f'one of (with partition): {known}')
    parser.add_argument(
        '--partition', required=True, help='unc, google or umd')
    parser.add_argument(
        '--refs',
        type=Path,
        help='the pickle (default: {root}/{dataset}/refs({partition}).p)')
    parser.add_argument(
        '--instances',
        type=Path,
        help='annotations (default: {root}/{dataset}/instances.json)')
    parser.add_argument(
        '--other-data',
        action='store_true',
        help='do not compare the numbers of refs and images with the '
        'published ones; dataset and partition may be any name then')
    parser.add_argument(
        '--out',
        type=Path,
        help='file to write (default: {root}/{dataset}-{partition}.json)')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace a file that has other content')
    parser.add_argument(
        '--quiet', action='store_true', help='show no progress bar')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    folder = args.root / args.dataset
    refs_file = args.refs or folder / f'refs({args.partition}).p'
    instances_file = args.instances or folder / 'instances.json'
    out = args.out or args.root / f'{args.dataset}-{args.partition}.json'
    bar = None if args.quiet else ProgressBar(4)
    try:
        refs = load_refs(refs_file)
        advance(bar)
        instances = load_coco(instances_file)
        advance(bar)
        data = convert_refs(
            refs,
            instances,
            args.dataset,
            args.partition,
            check_counts=not args.other_data)
        advance(bar)
        write_annotations(data, out, args.overwrite)
        advance(bar)
    except (OSError, ValueError) as error:
        sys.exit(f'{"" if bar is None else chr(10)}refer2json: {error}')
    if bar is not None:
        print()
    for split, counts in split_counts(data).items():
        print('{}: {} refs of {} images, {} sentences'.format(split, *counts))
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    print(f'{out}\nsha256 {digest}')


def advance(bar: ProgressBar) -> None:
    """Show that one of the four steps (two files, check, write) is done."""
    if bar is not None:
        bar.update()


if __name__ == '__main__':
    main()
