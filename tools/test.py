# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Evaluate teacher or student on the test data."""
import argparse
import json
from pathlib import Path

from mmsemi.apis.cli import (add_cfg_options, add_launcher, export_local_rank,
                             usage_errors)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Evaluate a checkpoint on the config's test data.",
        epilog='Example: test.py CONFIG.py work_dirs/CONFIG/iter_5000.pth '
        '--model student --show-dir pictures')
    parser.add_argument(
        'config', help="path of a config, or the name of one of mmsemi's")
    parser.add_argument('checkpoint', help='checkpoint to evaluate')
    parser.add_argument(
        '--model',
        choices=['teacher', 'student'],
        help='which one predicts (default: model.predict_on of the config)')
    parser.add_argument(
        '--work-dir',
        help='folder of the log (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='write the metrics to FILE.json, or the predictions to FILE.pkl')
    parser.add_argument(
        '--show-dir',
        metavar='FOLDER',
        help='draw the predictions beside the annotations into this folder '
        '(inside the log folder, unless it is absolute)')
    add_cfg_options(parser)
    add_launcher(parser)
    return parser


def prepare(args: argparse.Namespace) -> 'Config':  # noqa: F821
    """Return the config of the test run."""
    from mmsemi.apis import prepare_testing
    if args.out and Path(args.out).suffix not in ('.json', '.pkl'):
        raise ValueError(f'--out {args.out}: allowed are names that end with '
                         '.json or .pkl.')
    cfg = prepare_testing(
        args.config,
        args.checkpoint,
        which=args.model,
        work_dir=args.work_dir,
        cfg_options=args.cfg_options,
        launcher=args.launcher)
    if args.show_dir:
        hooks = dict(cfg.get('default_hooks') or {})
        hooks['visualization'] = {
            'type': 'mmdet.DetVisualizationHook',
            **hooks.get('visualization', {}), 'draw': True,
            'test_out_dir': args.show_dir
        }
        cfg.default_hooks = hooks
        if cfg.get('visualizer') is None:
            cfg.visualizer = dict(
                type='mmdet.DetLocalVisualizer', name='visualizer')
    return cfg


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    export_local_rank(args)
    with usage_errors(parser):
        cfg = prepare(args)
    from mmengine.dist import is_main_process

    from mmsemi.apis import run_testing
    out = Path(args.out or '')
    metrics = run_testing(
        cfg, predictions=out if out.suffix == '.pkl' else None)
    if out.suffix == '.json' and is_main_process():
        out.write_text(json.dumps(metrics, indent=2) + '\n')


if __name__ == '__main__':
    main()
