# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Report whether mask proposals make a model's pseudo-masks better.

The model labels the references that its training takes as unlabelled; masks
that nothing was trained with say what is better, worse and unmatched after
the refinement, as in figure 6 of SemiRES, and what the IoU is before and
after::

    python tools/analysis/refinement_report.py CONFIG.py \\
        work_dirs/CONFIG/best_oIoU_iter_3000.pth \\
        --strategies iom cpi_u cpi --max-refs 1000

It prints a table and writes the same numbers as JSON.
"""
import argparse
import json
from pathlib import Path

from mmsemi.apis.cli import add_cfg_options, usage_errors

STRATEGIES = ('iom', 'cpi', 'cpi_u', 'cpi_o')
HEAD = ('pipeline', 'references', 'better', 'worse', 'same', 'unmatched',
        'precision', 'mean IoU', 'refined', 'overall IoU', 'refined')
LEGEND = ('Precision: better by better and worse. Mean IoU: of references; '
          'overall: sums of pixels. Both in percent, before and after the '
          'refinement.')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', help="path of a config, or the name of one of mmsemi's")
    parser.add_argument('checkpoint', help='checkpoint to look at')
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='JSON file (default: work_dirs/CONFIG/refinement.json)')
    parser.add_argument(
        '--which',
        choices=('teacher', 'student'),
        help='who labels (default: model.predict_on of the config)')
    parser.add_argument(
        '--strategies',
        nargs='+',
        choices=STRATEGIES,
        default=[],
        metavar='NAME',
        help=f'strategies to try beside the config, of '
        f'{", ".join(STRATEGIES)}, with the other arguments of its '
        'RefineByProposals (default: none)')
    parser.add_argument(
        '--store',
        metavar='FOLDER',
        help='proposals to take (default: those that the config loads)')
    parser.add_argument(
        '--max-refs',
        type=int,
        metavar='N',
        help='look at the first N references (default: all)')
    parser.add_argument(
        '--device', help='cpu, cuda, cuda:1 (default: a GPU if there is one)')
    parser.add_argument(
        '--quiet', action='store_true', help='show no progress bar')
    add_cfg_options(parser)
    return parser


def table(rows: list) -> str:
    """Return rows of numbers as a table in Markdown."""
    lines = [HEAD, [':---'] + ['---:'] * (len(HEAD) - 1)]
    for row in rows:
        precision = row['precision']
        lines.append([
            row['name'], *(f'{row[key]:,}' for key in HEAD[1:6]),
            '-' if precision is None else f'{precision:.0%}', *(
                f'{row[f"{kind}_iou_{when}"]:.1f}'
                for kind in ('mean', 'overall')
                for when in ('before', 'after'))
        ])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    with usage_errors(parser):
        from mmsemi.apis.configs import config_name
        from mmsemi.apis.refinement_report import RefinementJudge
        from mmsemi.datasets.text_files import write_texts
        judge = RefinementJudge(args.config, args.checkpoint, args.which,
                                args.strategies, args.store, args.max_refs,
                                args.device, args.cfg_options)
        out = Path('work_dirs') / config_name(args.config) / 'refinement.json'
        if args.out:
            out = Path(args.out)
    rows = [row.numbers() for row in judge.judge(progress=not args.quiet)]
    print(f'{table(rows)}\n\n{LEGEND}')
    report = dict(
        config=args.config,
        checkpoint=args.checkpoint,
        labelled_by=judge.part,
        pipelines=rows)
    write_texts({out: f'{json.dumps(report, indent=2)}\n'}, overwrite=True)
    print(f'Written: {out}')


if __name__ == '__main__':
    main()
