# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Calibrate with all labels: two teachers, each measured on its other half.

For labels too few to hold any out. Halve them, train one teacher on each half
with the supervised config, and measure each on the half that it has not
learned, with the config of the semi-supervised training::

    python tools/dataset_converters/split_coco.py --folds 2 \\
        --ann-file LABELED.json --out-dir OUT
    python tools/analysis/cross_fit_calibration.py CONFIG.py \\
        TEACHER_0.pth OUT/LABELED-fold1.json \\
        TEACHER_1.pth OUT/LABELED-fold0.json --out calibration.pth

In that config, dict(type='mmsemi.CalibrationHook',
statistics='calibration.pth') in custom_hooks then starts the training with
the statistics of both.
"""
import argparse

from mmsemi.apis.cli import add_cfg_options, usage_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', help="path of a config, or the name of one of mmsemi's")
    for number, other in ((0, 1), (1, 0)):
        parser.add_argument(
            f'teacher_{number}',
            help=f'checkpoint of the teacher that learned half {number}')
        parser.add_argument(
            f'half_{other}',
            help=f'annotations of half {other}, to measure it on')
    parser.add_argument(
        '--out', required=True, metavar='FILE', help='file to write')
    parser.add_argument(
        '--device', help='cpu, cuda, cuda:1 (default: a GPU if there is one)')
    add_cfg_options(parser)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    with usage_errors(parser):
        from mmsemi.apis.configs import load_config
        from mmsemi.apis.cross_fit import CrossFit
        cross_fit = CrossFit(
            load_config(args.config, args.cfg_options),
            [(args.teacher_0, args.half_1), (args.teacher_1, args.half_0)],
            args.device)
    from mmsemi.pseudo_labels import save_calibration
    stages = cross_fit.measure()
    save_calibration(stages, args.out)
    for stage in stages:
        calibrator = stage.calibrator
        count = calibrator.statistics[..., 0].sum(1)
        error = calibrator.calibration_error()
        signed = calibrator.calibration_error(signed=True)
        print(f'{type(stage).__name__}: {float(count.sum()):.0f} predictions, '
              f'{int((count > 0).sum())} of {len(count)} classes; calibration '
              f'error {float(error.nanmean()):.3f}, signed '
              f'{float(signed.nanmean()):+.3f}')
    print(f'Written: {args.out}')


if __name__ == '__main__':
    main()
