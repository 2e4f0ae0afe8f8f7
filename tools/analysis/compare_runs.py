# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Compare trainings: a table of configs, every seed and the mean.

Example::

    python tools/analysis/compare_runs.py work_dirs/seed*/* --also PA loss

Trainings of one config and length form a row.
"""
import argparse
import math
from pathlib import Path

from mmsemi.apis.cli import usage_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'work_dirs',
        nargs='+',
        type=Path,
        help='work directories of trainings, one each')
    parser.add_argument(
        '--metric',
        default='mIoU',
        help='logged value that is listed for every seed '
        '(default: %(default)s)')
    parser.add_argument(
        '--also',
        nargs='*',
        default=['loss'],
        metavar='NAME',
        help='logged values whose mean is listed (default: loss)')
    parser.add_argument(
        '--out', type=Path, help='Markdown file to write the table to')
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    with usage_errors(parser):
        from mmsemi.apis.run_records import RunRecord, comparison_table
        keys = [args.metric, *args.also]
        records = [RunRecord.read(path, keys) for path in args.work_dirs]
        for key in keys:
            if all(math.isnan(record.values[key]) for record in records):
                raise ValueError(f'{key!r} was logged by none of the '
                                 f'{len(records)} trainings; see --metric '
                                 'and --also.')
        table = comparison_table(records, args.metric, args.also)
        if args.out is not None:
            args.out.write_text(table + '\n')
    print(table)


if __name__ == '__main__':
    main()
