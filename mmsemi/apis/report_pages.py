# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Write a calibration report: numbers, tables and pictures."""
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Union

import numpy as np
from matplotlib.image import imsave

from mmsemi.visualization.reliability_diagrams import draw_reliability_diagrams
from .calibration_report import CalibrationReport

MEASURES = ('accuracy', 'confidence', 'CCECE', 'signedCCECE', 'excessCCECE',
            'squaredCE')
LEGEND = '''\
Every prediction counts in the class that it predicts. `accuracy` is the share
of right predictions and `confidence` their mean score; `CCECE` is the mean
absolute gap between the two in bins of confidence, `signedCCECE` the same with
signs, above 0 for under-confidence. `excessCCECE` is what is left of `CCECE`
beyond what luck gives calibrated classes with as few predictions, `squaredCE`
the squared gap without the bias of few predictions. `LaECE` compares
confidence with the IoU instead. Rows of groups are means over their classes,
in which each counts alike.'''


def write_report(report: CalibrationReport,
                 out_dir: Union[str, Path],
                 facts: Mapping[str, Any]) -> List[Path]:
    """Write a report into a folder; files of an earlier one are replaced.

    Args:
        report (CalibrationReport): From :func:`calibration_report`.
        out_dir (str or Path): Folder, created when missing.
        facts (Mapping[str, Any]): What was measured, such as config and
            checkpoint, by name; goes into both files.

    Returns:
        list[Path]: ``report.json``, ``report.md``, ``reliability.png`` and,
        if corrections were tried, ``correction.png``.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = [out_dir / name
             for name in ('report.json', 'report.md', 'reliability.png')]
    numbers = dict(facts=dict(facts), **report.numbers)
    paths[0].write_text(
        json.dumps(numbers, indent=2, allow_nan=False) + '\n',
        encoding='utf-8')
    paths[1].write_text(
        markdown(report.numbers, facts), encoding='utf-8')
    draw_reliability_diagrams(
        report.statistics, report.groups, report.group_names, path=paths[2])
    if report.corrected:
        paths.append(out_dir / 'correction.png')
        draw_corrections(report, paths[3])
    return paths


def draw_corrections(report: CalibrationReport,
                     path: Union[str, Path]) -> np.ndarray:
    """Draw reliability diagrams before and after each correction.

    Args:
        report (CalibrationReport): With ``corrected``.
        path (str or Path): Picture to write.

    Returns:
        np.ndarray: The picture (H, W, 3), uint8, RGB, a row for each.
    """
    rows = [
        draw_reliability_diagrams(statistics, report.groups,
                                  report.group_names,
                                  'before' if mode == 'none' else
                                  f'after: {mode}')
        for mode, statistics in report.corrected.items()
    ]
    picture = np.concatenate(rows)
    imsave(path, picture)
    return picture


def markdown(numbers: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return a report as Markdown.

    Args:
        numbers (Mapping): ``CalibrationReport.numbers``.
        facts (Mapping[str, Any]): What was measured, by name.

    Returns:
        str: The text.
    """
    text = ['# Calibration report', '']
    text += [f'- {key}: `{value}`' for key, value in facts.items()]
    text += [
        f'- {numbers["images"]} images with {numbers["instances"]} instances',
        f'- {numbers["predictions"]} predictions; {numbers["left_out"]} more '
        'cannot be judged', '', LEGEND, '', '## Groups of classes', '',
        table(numbers['groups'], ('name', 'classes', 'measured', 'count',
                                  *MEASURES, 'LaECE')), '',
        '![reliability](reliability.png)', '', '## Pseudo-labels', '',
        'Predictions that score more than the threshold, against all '
        'instances.', '', _quality_table(numbers['pseudo_labels'])
    ]
    if numbers['correction'] is not None:
        text += _correction_part(numbers['correction'])
    text += ['', '## Classes', '',
             table(numbers['classes'], ('name', 'group', 'instances', 'count',
                                        *MEASURES, 'LaECE'))]
    unmeasured = numbers['unmeasured']
    text += ['', f'## {len(unmeasured)} unmeasured classes', '',
             'They have no prediction and are in no mean. ' +
             (f'{", ".join(map(_text, unmeasured))}.' if unmeasured else
              'There are none.'), '']
    return '\n'.join(text)


def table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """Return rows as a Markdown table.

    Args:
        rows (Sequence[Mapping]): Values by column; None and what is missing
            become a dash.
        keys (Sequence[str]): The columns.

    Returns:
        str: The table; a column without any value is left out.
    """
    keys = [key for key in keys
            if any(row.get(key) is not None for row in rows)]
    left = ('name', 'group', 'correction')
    lines = [keys, [':--' if key in left else '--:' for key in keys]]
    lines += [[_text(row.get(key), key) for key in keys] for row in rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _correction_part(correction: Mapping[str, Any]) -> List[str]:
    def named(part: str) -> List[Dict[str, Any]]:
        return [dict(correction=mode['mode'], **row)
                for mode in correction['modes'] for row in mode[part]]

    text = ['', '## Corrections', '',
            f'Fitted to {correction["fit_images"]} of the images and judged '
            f'on the other {correction["judged_images"]}. `brier` is the mean '
            'squared difference between confidence and outcome.', '',
            table(named('groups'), ('correction', 'name', 'measured', 'count',
                                    *MEASURES, 'brier')), '',
            '![correction](correction.png)']
    if correction['modes'][0]['pseudo_labels']:
        text += ['', 'Pseudo-labels of the judged images whose corrected '
                 'score is above the threshold:', '',
                 _quality_table(named('pseudo_labels'))]
    return text


def _quality_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(rows, ('correction', 'score_thr', 'group', 'pseudo_labels',
                        'instances', 'matched', 'precision', 'recall', 'iou'))


def _text(value: Any, key: str = '') -> str:
    if value is None:
        return '–'
    if isinstance(value, float):
        # Counts are floats, because they may be weighted.
        return f'{value:g}' if key in ('count', 'score_thr') else \
            f'{value:+.4f}' if key == 'signedCCECE' else f'{value:.4f}'
    return str(value).replace('|', '\\|')
