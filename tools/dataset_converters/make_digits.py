# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Make the embedded data: scenes of handwritten digits, from a seed."""
import argparse
import json

from mmsemi.datasets.digits import INFO_FILE, make_digits


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Make scenes of real handwritten digits (scikit-learn '
        'carries them, nothing is downloaded) as COCO instances and mmseg '
        'label maps, on demand with referring expressions, and with '
        'labelled/unlabelled splits. 2,300 scenes take '
        'seconds. Equal options give equal files; a folder that already '
        'holds them is reused.',
        epilog='Examples: python tools/dataset_converters/make_digits.py '
        'data/digits --long-tail 20 --split-seeds 0 1 2; python '
        'tools/dataset_converters/make_digits.py data/digits_referring '
        '--referring',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('out_dir', help='folder to make')
    parser.add_argument(
        '--num-train', type=int, default=2000, help='training scenes')
    parser.add_argument(
        '--num-val',
        type=int,
        default=300,
        help='validation scenes; their handwriting is not in training')
    parser.add_argument(
        '--image-size', type=int, default=64, help='pixels, both ways')
    parser.add_argument(
        '--digits-per-scene',
        type=int,
        nargs=2,
        metavar=('LEAST', 'MOST'),
        help='how many digits a scene has; left out, 1 to 3, and 2 to 4 with '
        '--referring')
    parser.add_argument(
        '--long-tail',
        type=float,
        default=1.0,
        help='how many times more zeros than nines the training scenes have '
        '(exponential decay between them); validation stays balanced')
    parser.add_argument(
        '--referring',
        action='store_true',
        help='make scenes of digits in named colours and two sizes, with '
        'expressions such as "the leftmost red seven" that fit one digit '
        'only')
    parser.add_argument(
        '--max-overlap',
        type=float,
        default=0.1,
        help='largest share of a digit that others may hide')
    parser.add_argument('--seed', type=int, default=0, help='of the scenes')
    parser.add_argument(
        '--percents',
        type=float,
        nargs='*',
        default=(1, 2, 5, 10, 100),
        help='labelled percentages to write splits for')
    parser.add_argument(
        '--shots',
        type=int,
        nargs='*',
        default=(),
        help='numbers of labelled instances per class to write splits for '
        'as well, such as 5 10')
    parser.add_argument(
        '--split-seeds',
        type=int,
        nargs='+',
        default=(0, ),
        help='one pair of files per seed and percentage or number of shots')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace a digits folder made with other options (the whole '
        'folder)')
    parser.add_argument(
        '--quiet', action='store_true', help='show no progress bar')
    args = parser.parse_args()
    args.parser = parser
    return args


def main() -> None:
    options = vars(parse_args())
    parser, quiet = options.pop('parser'), options.pop('quiet')
    try:
        out_dir = make_digits(progress=not quiet, **options)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    info = json.loads((out_dir / INFO_FILE).read_text())
    print(f'Digit scenes in {out_dir} (checksum {info["checksum"][:12]})')


if __name__ == '__main__':
    main()
