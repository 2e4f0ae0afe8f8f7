# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Tell errors of the class from errors of the mask.

The model predicts on test_dataloader as it is evaluated. Every prediction
above a score is one of: right; of a wrong class, with a right mask; of the
right class, with a poor mask; wrong in both; a duplicate; background. AP with
classes ignored, beside AP, says how much the classes cost::

    python tools/analysis/error_kinds.py CONFIG.py \\
        work_dirs/CONFIG/iter_1000.pth --score-thr 0.3 0.5 --out errors.json
"""
import argparse
import json
import os.path as osp
import tempfile
from pathlib import Path
from typing import Sequence

from mmsemi.apis.cli import add_cfg_options, usage_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', help="path of a config, or the name of one of mmsemi's")
    parser.add_argument('checkpoint', help='checkpoint to look at')
    parser.add_argument(
        '--which',
        metavar='NAME',
        help='which part predicts: teacher or student (default: '
        'model.predict_on of the config)')
    parser.add_argument(
        '--out', metavar='FILE', help='write all numbers to FILE.json')
    parser.add_argument(
        '--overlap',
        choices=('segm', 'bbox'),
        default='segm',
        help='of masks or of boxes (default: segm)')
    parser.add_argument(
        '--score-thr',
        type=float,
        nargs='+',
        default=[0.5],
        metavar='THR',
        help='predictions that score more are sorted; one line for each '
        'threshold (default: 0.5)')
    parser.add_argument(
        '--iou-thr',
        type=float,
        default=0.5,
        metavar='T',
        help='IoU from which on a mask is right (default: 0.5)')
    parser.add_argument(
        '--background-thr',
        type=float,
        default=0.1,
        metavar='t',
        help='IoU from which on a mask shows an instance at all (default: '
        '0.1)')
    parser.add_argument(
        '--nms-thr',
        type=float,
        default=0.5,
        metavar='IOU',
        help='without classes, the largest IoU of two predictions that both '
        'count (default: 0.5)')
    parser.add_argument(
        '--work-dir', help='folder of the log (default: work_dirs/CONFIG)')
    add_cfg_options(parser)
    return parser


def prepare(args: argparse.Namespace) -> tuple:
    """Check everything that can be wrong before the model runs.

    Returns:
        tuple: The config of the test run, the annotations and their file.
    """
    from pycocotools.coco import COCO

    from mmsemi.apis import prepare_testing
    from mmsemi.apis.data_files import data_sources
    from mmsemi.apis.inference import dataset_meta
    from mmsemi.datasets import load_coco
    from mmsemi.evaluation.error_kinds import ErrorAnalysis
    if args.out and Path(args.out).suffix != '.json':
        raise ValueError(f'--out {args.out}: allowed are names that end with '
                         '.json.')
    cfg = prepare_testing(
        args.config,
        args.checkpoint,
        which=args.which,
        work_dir=args.work_dir,
        cfg_options=args.cfg_options)
    if cfg.get('default_scope') == 'mmseg':
        raise ValueError("default_scope='mmseg': the analysis is about "
                         'instances, and the config is of a model that gives '
                         'every pixel a class.')
    sources = [
        source for _, source in data_sources(cfg.test_dataloader.dataset, '')
        if source.get('ann_file')
    ]
    if len(sources) != 1:
        raise ValueError('test_dataloader must have one data set with an '
                         f"ann_file in COCO's format, found {len(sources)}.")
    ann_file = osp.join(sources[0].get('data_root') or '',
                        sources[0]['ann_file'])
    truth = COCO()
    truth.dataset = of_classes(
        load_coco(ann_file),
        dataset_meta(cfg, {}).get('classes') or ())
    truth.createIndex()
    # Thresholds, too, are wrong before an hour of predictions.
    for thr in args.score_thr:
        ErrorAnalysis(truth, [], args.overlap).error_counts(
            thr, args.iou_thr, args.background_thr)
    return cfg, truth, ann_file


def of_classes(coco: dict, classes: Sequence[str]) -> dict:
    """Leave out the annotations of classes that the data set does not have."""
    from mmsemi.datasets.coco_files import check_coco
    check_coco(coco)
    known = {c['id'] for c in coco['categories'] if c['name'] in classes}
    return dict(
        coco,
        categories=[c for c in coco['categories'] if c['id'] in known],
        annotations=[
            a for a in coco['annotations'] if a['category_id'] in known
        ])


def predict(cfg: 'Config', ann_file: str, overlap: str) -> list:  # noqa: F821
    """Return the predictions in COCO's format for results."""
    from mmsemi.apis import run_testing
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / 'found')
        cfg.test_evaluator = dict(
            type='mmdet.CocoMetric',
            ann_file=ann_file,
            metric=overlap,
            format_only=True,
            outfile_prefix=prefix)
        run_testing(cfg)
        file = Path(f'{prefix}.{overlap}.json')
        return json.loads(file.read_text())


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    with usage_errors(parser):
        cfg, truth, ann_file = prepare(args)
    from mmsemi.apis import end_processes
    from mmsemi.evaluation.error_kinds import ErrorAnalysis, error_report
    results = predict(cfg, ann_file, args.overlap)
    report, lines = error_report(
        ErrorAnalysis(truth, results, args.overlap), args.score_thr,
        args.iou_thr, args.background_thr, args.nms_thr)
    print('\n'.join(lines))
    if args.out:
        facts = dict(config=args.config, checkpoint=args.checkpoint)
        Path(args.out).write_text(
            json.dumps(dict(facts, **report), indent=2) + '\n')
    end_processes()


if __name__ == '__main__':
    main()
