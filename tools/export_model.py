# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Write a trained part of a model as a plain mmdet or mmseg model."""
import argparse

from mmsemi.apis.cli import add_cfg_options, usage_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Write teacher, student or one of several networks as an '
        'mmdet or mmseg config and checkpoint that need no mmsemi: '
        'mmdet.apis.init_detector(CONFIG, CHECKPOINT) or '
        "mmseg.apis.init_model and the library's tools take them.",
        epilog='Example: export_model.py CONFIG.py '
        'work_dirs/CONFIG/iter_5000.pth exported')
    parser.add_argument(
        'config', help="path of a config, or the name of one of mmsemi's")
    parser.add_argument('checkpoint', help='checkpoint of the training')
    parser.add_argument('out_dir', help='folder to write to')
    parser.add_argument(
        '--model',
        metavar='NAME',
        help='teacher, student, network_0, ..., as the model has it '
        '(default: model.predict_on of the config, mostly teacher)')
    parser.add_argument(
        '--verify',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='load the files with the library and compare the predictions on '
        'a random image, bit for bit (on by default)')
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
    print(f'{files.which}{checked}:\n  {files.config}\n  '
          f'{files.checkpoint}')


if __name__ == '__main__':
    main()
