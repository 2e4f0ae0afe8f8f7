# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Report how far a model's confidence is from being right.

The model predicts on the images of test_dataloader, or of val_dataloader. For
corrections that a training is to use, these should be labelled images that it
did not learn (split_coco.py --hold-out), not those of the final evaluation::

    python tools/analysis/calibration_report.py CONFIG.py \\
        work_dirs/CONFIG/iter_5000.pth --which teacher --out report \\
        --score-thr 0.5 0.7 --cfg-options \\
        test_dataloader.dataset.ann_file=annotations/train-calib.json \\
        test_dataloader.dataset.data_prefix.img=train/

It writes report.json, report.md, reliability.png and correction.png.
"""
import argparse
from pathlib import Path
from typing import Optional

from mmsemi.apis.cli import add_cfg_options, usage_errors

MODES = ('scalar', 'bin', 'platt', 'temperature')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', help="path of a config, or the name of one of mmsemi's")
    parser.add_argument('checkpoint', help='checkpoint to look at')
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder of the report (default: work_dirs/CONFIG/calibration)')
    parser.add_argument(
        '--which',
        choices=('teacher', 'student'),
        help='which part predicts (default: model.predict_on of the config)')
    parser.add_argument(
        '--ann-groups',
        metavar='FILE',
        help="labelled annotations, COCO's format, whose frequencies say "
        'which classes are rare, common and frequent; none for no groups '
        '(default: those of the first data set of train_dataloader)')
    parser.add_argument(
        '--score-thr',
        type=float,
        nargs='+',
        default=[0.5],
        metavar='THR',
        help='thresholds of pseudo-labels whose precision and recall are '
        'reported (default: 0.5)')
    parser.add_argument(
        '--correct',
        nargs='*',
        choices=MODES,
        default=['scalar', 'platt'],
        metavar='MODE',
        help=f'corrections to try, of {", ".join(MODES)}; nothing for none '
        '(default: scalar platt)')
    parser.add_argument(
        '--device', help='cpu, cuda, cuda:1 (default: a GPU if there is one)')
    add_cfg_options(parser)
    return parser


def prepare(args: argparse.Namespace) -> tuple:
    """Check everything that can be wrong before the model runs.

    Returns:
        tuple: What judges the predictions, the classes' groups or None, and
        what goes into the report's head.
    """
    for thr in args.score_thr:
        if not 0 <= thr <= 1:
            raise ValueError(f'--score-thr {thr}: allowed are numbers from 0 '
                             'to 1.')
    ann_file = args.ann_groups
    if ann_file not in (None, 'none') and not Path(ann_file).is_file():
        raise FileNotFoundError(f'There is no annotation file {ann_file} '
                                '(--ann-groups).')
    from mmsemi.apis.configs import load_config
    from mmsemi.apis.judged_images import PredictionJudge, labeled_annotations
    from mmsemi.pseudo_labels import read_class_groups
    cfg = load_config(args.config, args.cfg_options)
    if ann_file is None:
        ann_file = labeled_annotations(cfg) or 'none'
    judge = PredictionJudge(cfg, args.checkpoint, args.which, args.device)
    if args.correct and len(judge.loader.dataset) < 2:
        raise ValueError('A correction is fitted to one half of the images; '
                         'the data has one image. Give --correct nothing.')
    groups = None
    if ann_file != 'none':
        groups = read_class_groups(ann_file, judge.classes)
    facts = dict(
        config=args.config,
        checkpoint=args.checkpoint,
        predicted_by=judge.part,
        class_groups=ann_file)
    return judge, groups, facts


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    with usage_errors(parser):
        from mmsemi.apis.configs import config_name
        judge, groups, facts = prepare(args)
        out = Path('work_dirs') / config_name(args.config) / 'calibration'
        if args.out:
            out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
    from mmsemi.apis.calibration_report import calibration_report
    from mmsemi.apis.report_pages import write_report
    report = calibration_report(
        judge.judge(),
        judge.classes,
        groups,
        score_thrs=args.score_thr,
        modes=args.correct)
    paths = write_report(report, out, facts)
    for row in report.numbers['groups']:
        print(f'{row["name"]}: {row["measured"]} of {row["classes"]} classes '
              f'measured, calibration error {_number(row["CCECE"], ".4f")}, '
              f'signed {_number(row["signedCCECE"], "+.4f")}')
    print(f'Written: {", ".join(map(str, paths))}')


def _number(value: Optional[float], style: str) -> str:
    return '-' if value is None else format(value, style)


if __name__ == '__main__':
    main()
