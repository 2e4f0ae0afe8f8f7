# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Find what is wrong with configs before a training does."""
import argparse
import sys
import time

from mmsemi.apis.cli import add_cfg_options, usage_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Check configs: every type resolves, and to the right '
        'library; views, batches and class lists fit together; the model can '
        'be built; data sets whose files exist can be loaded. Nothing is '
        'trained or downloaded. The exit code is 1 if there is an error.',
        epilog='Example: check_config.py configs/mean_teacher/*.py')
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='CONFIG',
        help="path of a config, or the name of one of mmsemi's")
    parser.add_argument(
        '--no-model', action='store_true', help='do not build the model')
    parser.add_argument(
        '--no-data',
        action='store_true',
        help='do not load data sets, which takes as long as their files are '
        'large')
    add_cfg_options(parser)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    failed = False
    for name in args.configs:
        start = time.perf_counter()
        with usage_errors(parser):
            from mmsemi.apis import check_config, load_config
            findings = check_config(
                load_config(name, args.cfg_options),
                build_model=not args.no_model,
                load_data=not args.no_data)
        errors = [f for f in findings if f.level == 'error']
        failed |= bool(errors)
        seconds = time.perf_counter() - start
        print(f'{name}: {f"{len(errors)} error(s)" if errors else "ok"} '
              f'({seconds:.1f} s)')
        for finding in findings:
            print(f'  {finding.level}: {finding.where}: {finding.message}')
    sys.exit(int(failed))


if __name__ == '__main__':
    main()
