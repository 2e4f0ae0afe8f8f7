# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Write teacher or student as a plain mmdet model."""
import argparse

from mmsemi.apis.cli import add_cfg_options, usage_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Write teacher or student as an mmdet config and '
        'checkpoint that need no mmsemi: init_detector(CONFIG, CHECKPOINT) '
        "and mmdet's tools take them.",
        epilog='Example: export_model.py CONFIG.py '
        'work_dirs/CONFIG/iter_5000.pth exported')
    parser.add_argument(
        'config', help="path of a config, or the name of one of mmsemi's")
    parser.add_argument('checkpoint', help='checkpoint of the training')
    parser.add_argument('out_dir', help='folder to write to')
    parser.add_argument(
        '--model',
        choices=['teacher', 'student'],
        default='teacher',
        help='default: teacher')
    parser.add_argument(
        '--verify',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='load the files with mmdet and compare the predictions on a '
        'random image, bit for bit (on by default)')
    add_cfg_options(parser)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    with usage_errors(parser):
        from mmsemi.apis import export_model, load_config
        files = export_model(
            load_config(args.config, args.cfg_options),
            args.checkpoint,
            args.out_dir,
            which=args.model,
            verify=args.verify)
    checked = ', predicts the same' if args.verify else ''
    print(f'{args.model}{checked}:\n  {files.config}\n  {files.checkpoint}')


if __name__ == '__main__':
    main()
