# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Train a model."""
import argparse

from mmsemi.apis.cli import (add_cfg_options, add_launcher, export_local_rank,
                             usage_errors)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Train a model. On several GPUs or nodes use '
        'dist_train.sh or slurm_train.sh.',
        epilog='Examples: train.py configs/mean_teacher/CONFIG.py; after a '
        'kill the same command with --resume goes on as if nothing had '
        'happened.')
    parser.add_argument(
        'config', help="path of a config, or the name of one of mmsemi's")
    parser.add_argument(
        '--work-dir',
        help='folder of logs and checkpoints (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        default=False,
        metavar='CHECKPOINT',
        help='resume from this checkpoint; without a value (or with "auto") '
        'from the newest one in the work dir, if there is one')
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate from the config's "
        'auto_scale_lr.base_batch_size to the batch size in use')
    parser.add_argument(
        '--seed', type=int, help='of model and data (default: that of the '
        'config)')
    add_cfg_options(parser)
    add_launcher(parser)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    export_local_rank(args)
    with usage_errors(parser):
        from mmsemi.apis import end_processes, prepare_training, run_training
        cfg = prepare_training(
            args.config,
            work_dir=args.work_dir,
            resume=args.resume,
            amp=args.amp,
            auto_scale_lr=args.auto_scale_lr,
            seed=args.seed,
            cfg_options=args.cfg_options,
            launcher=args.launcher)
    run_training(cfg)
    end_processes()


if __name__ == '__main__':
    main()
