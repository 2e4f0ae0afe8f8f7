# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Evaluate a model, or a part of one, on the test data."""
import argparse
import json
import math
from pathlib import Path
from typing import Any, Mapping

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
        metavar='NAME',
        help='which part predicts: teacher, student, network_0, ..., mean, as '
        'the model has it (default: model.predict_on of the config)')
    parser.add_argument(
        '--work-dir',
        help='folder of the log (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='write the metrics to FILE.json (null where there is no value), '
        'or the predictions to FILE.pkl')
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
        draw_predictions(cfg, args.show_dir)
    return cfg


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Return metrics as JSON, which has no NaN and no infinity."""

    def number(value: Any) -> Any:
        # NumPy and torch have numbers of their own.
        value = value.item() if hasattr(value, 'item') else value
        finite = not isinstance(value, float) or math.isfinite(value)
        return value if finite else None

    values = {key: number(value) for key, value in metrics.items()}
    return json.dumps(values, indent=2, allow_nan=False) + '\n'


def draw_predictions(cfg: 'Config', folder: str) -> None:  # noqa: F821
    """Let the library's hook draw all predictions, in place."""
    semantic = cfg.get('default_scope') == 'mmseg'
    hook, visualizer = ('mmseg.SegVisualizationHook',
                        'mmseg.SegLocalVisualizer') if semantic else (
                            'mmdet.DetVisualizationHook',
                            'mmdet.DetLocalVisualizer')
    hooks = dict(cfg.get('default_hooks') or {})
    hooks['visualization'] = {
        'type': hook,
        **hooks.get('visualization', {}), 'draw': True
    }
    if not semantic:
        hooks['visualization']['test_out_dir'] = folder
    cfg.default_hooks = hooks
    if cfg.get('visualizer') is None:
        cfg.visualizer = dict(type=visualizer, name='visualizer')
    if not semantic:
        return
    # mmseg's hook draws into whatever the visualizer writes to, by default
    # the folder vis_data/vis_image inside the log folder.
    others = [
        backend for backend in cfg.visualizer.get('vis_backends') or ()
        if not backend['type'].endswith('LocalVisBackend')
    ]
    cfg.visualizer.vis_backends = others + [
        dict(
            type='LocalVisBackend',
            img_save_dir=str(Path('..') / Path(folder).expanduser()))
    ]


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    export_local_rank(args)
    with usage_errors(parser):
        cfg = prepare(args)
    from mmengine.dist import is_main_process

    from mmsemi.apis import end_processes, run_testing
    out = Path(args.out or '')
    metrics = run_testing(
        cfg, predictions=out if out.suffix == '.pkl' else None)
    if out.suffix == '.json' and is_main_process():
        out.write_text(metrics_text(metrics))
    end_processes()


if __name__ == '__main__':
    main()
