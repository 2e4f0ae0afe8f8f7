# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Print a config with everything that it inherits."""
import argparse
from pathlib import Path

from mmsemi.apis.cli import add_cfg_options, usage_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Print a config with everything that it inherits, or '
        'what differs from another config.',
        epilog='Example: print_config.py MY_CONFIG.py --diff '
        'mmdet::solov2/solov2_r50_fpn_1x_coco.py')
    parser.add_argument(
        'config',
        help="path of a config, name of one of mmsemi's, or "
        "'mmdet::FOLDER/NAME.py'")
    add_cfg_options(parser)
    parser.add_argument(
        '--diff',
        metavar='BASE',
        help='print only values that differ from this config: - for what '
        'BASE has, + for what the config has')
    parser.add_argument(
        '--out', metavar='FILE', help='write to this file instead')
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    with usage_errors(parser):
        from mmsemi.apis.configs import diff_configs, load_config
        cfg = load_config(args.config, args.cfg_options)
        if args.diff is None:
            text = cfg.pretty_text
        else:
            text = '\n'.join(diff_configs(load_config(args.diff), cfg))
        if args.out is not None:
            Path(args.out).write_text(text + '\n', encoding='utf-8')
            return
    print(text)


if __name__ == '__main__':
    main()
