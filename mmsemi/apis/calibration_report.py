# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What judged predictions say about a model's confidence."""
import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from mmsemi.datasets.calibration_split import first_half
from mmsemi.pseudo_labels import (ClassCalibrator, PseudoLabelQuality,
                                  calibration_error, collect_statistics,
                                  debiased_squared_error, group_means,
                                  null_calibration_error, quality_of_groups)
from mmsemi.pseudo_labels.class_calibrator import MODES
from mmsemi.pseudo_labels.class_hierarchy import check_groups
from mmsemi.structures.confusion_matrix import unique_names
from .judged_images import JudgedImage

GROUP_NAMES = ('rare', 'common', 'frequent')
#: Confidences, labels and outcomes of predictions, (N,) each.
Samples = Tuple[Tensor, Tensor, Tensor]


@dataclass
class CalibrationReport:
    """All numbers of a report, and what its pictures are drawn from.

    Args:
        numbers (dict): Plain numbers, strings, lists and dicts; None where a
            number is not defined. ``images``, ``predictions`` (judged),
            ``left_out`` (not to be judged, such as those in crowd regions),
            ``instances``; ``groups`` and ``classes``, a row each;
            ``unmeasured``, names of classes without predictions;
            ``pseudo_labels``, a row per threshold and group; ``correction``,
            None without modes, else ``fit_images``, ``judged_images`` and
            per mode, with 'none' first, ``groups`` and ``pseudo_labels``.
        statistics (Tensor): (C, B, 3) of all images.
        corrected (dict[str, Tensor]): (C, B, 3) of the judged half by mode,
            with 'none' first; empty without modes.
        groups (Tensor, optional): Group of each class (C,).
        group_names (Sequence[str]): Names of the groups.
    """

    numbers: dict
    statistics: Tensor
    corrected: Dict[str, Tensor]
    groups: Optional[Tensor]
    group_names: Sequence[str]


def calibration_report(images: Sequence[JudgedImage],
                       classes: Sequence[str],
                       groups: Union[Sequence[int], Tensor, None] = None,
                       group_names: Sequence[str] = GROUP_NAMES,
                       score_thrs: Sequence[float] = (0.5, ),
                       modes: Sequence[str] = ('scalar', 'platt'),
                       outcome: str = 'match',
                       num_bins: int = 15,
                       la_num_bins: int = 25) -> CalibrationReport:
    """Compute all numbers of a report.

    Measures are those of :class:`CalibrationMetric`, in [-1, 1]: of a class,
    and as the mean over the classes of a group, in which each counts alike.
    ``accuracy`` is the mean outcome, ``confidence`` the mean score.

    A correction is fitted to the first half of the images, in the order of a
    hash of their ids (:func:`first_half`), and judged on the other. There,
    ``brier`` is the mean squared difference between confidence and outcome:
    a correction that gives all predictions one confidence may be calibrated,
    but has a bad one.

    Args:
        images (Sequence[JudgedImage]): Judged predictions.
        classes (Sequence[str]): Names of the C classes.
        groups (Sequence[int] or Tensor, optional): Group of each class, from
            0. Defaults to None: no groups.
        group_names (Sequence[str]): Defaults to ('rare', 'common',
            'frequent').
        score_thrs (Sequence[float]): Pseudo-labels are predictions that
            score strictly more, in [0, 1]. Defaults to (0.5, ).
        modes (Sequence[str]): Corrections to try; see
            :class:`ClassCalibrator`. Defaults to ('scalar', 'platt').
        outcome (str): See :meth:`PredictionOutcomes.outcomes`. Not for
            LaECE. Defaults to 'match'.
        num_bins (int): Bins of equal width. Defaults to 15.
        la_num_bins (int): Bins of LaECE. Defaults to 25.

    Returns:
        CalibrationReport: The numbers.

    Raises:
        ValueError: If an argument is out of range, there are no images, too
            few for a correction, or a prediction is of no class.
    """
    groups = _check(images, classes, groups, group_names, score_thrs, modes)
    names = group_names if groups is not None else ()
    num_classes = len(classes)
    samples = _samples(images, 'judged', outcome)
    statistics = collect_statistics(*samples, num_classes, num_bins)
    located = collect_statistics(*_samples(images, 'located', 'iou'),
                                 num_classes, la_num_bins)
    measures = class_measures(statistics, located)
    instances = torch.cat([i.judged.true_labels for i in images]).bincount(
        minlength=num_classes)
    rows = _class_rows(measures, unique_names(classes, num_classes), groups,
                       names, instances)
    predicted = sum(len(image.judged.labels) for image in images)
    numbers = dict(
        images=len(images),
        predictions=len(samples[0]),
        left_out=predicted - len(samples[0]),
        instances=int(instances.sum()),
        settings=dict(
            outcome=outcome, num_bins=num_bins, la_num_bins=la_num_bins),
        groups=_group_rows(measures, groups, names),
        classes=rows,
        unmeasured=[row['name'] for row in rows if not row['count']],
        pseudo_labels=_quality_rows(images, num_classes, groups, names,
                                    dict(zip(score_thrs, score_thrs))),
        correction=None)
    corrected: Dict[str, Tensor] = {}
    if modes:
        numbers['correction'] = dict(modes=[])
        chosen = first_half([image.image_id for image in images])
        halves = [[image for i, image in enumerate(images)
                   if (i in chosen) is fit] for fit in (True, False)]
        numbers['correction'].update(
            fit_images=len(halves[0]), judged_images=len(halves[1]))
        for mode in dict.fromkeys(('none', *modes)):
            row, corrected[mode] = _try_correction(
                mode, *halves, num_classes, groups, names, score_thrs,
                outcome, num_bins)
            numbers['correction']['modes'].append(row)
    return CalibrationReport(_plain(numbers), statistics, corrected, groups,
                             names)


def class_measures(statistics: Tensor,
                   located: Optional[Tensor] = None) -> Dict[str, Tensor]:
    """Compute the measures of every class.

    Args:
        statistics (Tensor): (C, B, 3), see ``calibration_measures``.
        located (Tensor, optional): Those with IoU as outcome. Defaults to
            None: no ``LaECE``.

    Returns:
        dict[str, Tensor]: (C,), float64; all but ``count`` are NaN for
        classes without predictions.
    """
    count, confidence, right = statistics.sum(1).unbind(-1)
    error = calibration_error(statistics)
    measures = dict(
        count=count,
        accuracy=right / count,
        confidence=confidence / count,
        CCECE=error,
        signedCCECE=calibration_error(statistics, signed=True),
        excessCCECE=error - null_calibration_error(statistics),
        squaredCE=debiased_squared_error(statistics))
    if located is not None:
        measures['LaECE'] = calibration_error(located)
    return measures


def _check(images: Sequence[JudgedImage], classes: Sequence[str],
           groups: Union[Sequence[int], Tensor, None],
           group_names: Sequence[str], score_thrs: Sequence[float],
           modes: Sequence[str]) -> Optional[Tensor]:
    """Check the arguments; return the groups as a tensor."""
    if len(images) < (2 if modes else 1):
        raise ValueError(f'There are {len(images)} images; a report needs at '
                         'least one, corrections need two.')
    if not classes:
        raise ValueError('The data names no classes: set metainfo=dict('
                         'classes=(...)) of the dataset.')
    for image in images:
        for labels in (image.judged.labels, image.judged.true_labels):
            if len(labels) and int(labels.max()) >= len(classes):
                raise ValueError(f'{image.image_id} has an instance of class '
                                 f'{int(labels.max())}, but the data names '
                                 f'only {len(classes)} classes.')
    for thr in score_thrs:
        if not 0 <= thr <= 1:
            raise ValueError(f'score_thr={thr}; allowed are numbers from 0 '
                             'to 1.')
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f'Unknown correction {mode!r}; allowed are '
                             f'{", ".join(map(repr, MODES))}.')
    if groups is None:
        return None
    groups = check_groups(groups, len(classes), 'groups')
    if groups.max() >= len(group_names):
        raise ValueError(f'There is a group {int(groups.max())}, but only '
                         f'{len(group_names)} group_names.')
    return groups


def _samples(images: Sequence[JudgedImage], field: str,
             kind: str) -> Samples:
    """Return what counts of all predictions."""
    parts: Tuple[List[Tensor], ...] = ([], [], [])
    for image in images:
        judged = getattr(image, field)
        outcomes, counted = judged.outcomes(kind)
        for part, values in zip(parts,
                                (judged.scores, judged.labels, outcomes)):
            part.append(values[counted])
    scores, labels, outcomes = map(torch.cat, parts)
    return scores, labels, outcomes


def _class_rows(measures: Dict[str, Tensor], names: Sequence[str],
                groups: Optional[Tensor], group_names: Sequence[str],
                instances: Tensor) -> List[dict]:
    columns = {key: values.tolist() for key, values in measures.items()}
    return [
        dict(
            name=name,
            group=None if groups is None else group_names[groups[i]],
            instances=int(instances[i]),
            **{key: values[i] for key, values in columns.items()})
        for i, name in enumerate(names)
    ]


def _group_rows(measures: Dict[str, Tensor], groups: Optional[Tensor],
                names: Sequence[str]) -> List[dict]:
    """Return sums of counts and means over classes, 'all' first."""
    count = measures['count']
    parts = [('all', torch.zeros_like(count, dtype=torch.long))]
    if groups is not None:
        parts += [(name, (groups != i).long()) for i, name in enumerate(names)]
    rows = []
    for name, outside in parts:
        inside = outside == 0
        row = dict(
            name=name,
            classes=int(inside.sum()),
            measured=int((count[inside] > 0).sum()),
            count=float(count[inside].sum()))
        for key, values in measures.items():
            if key != 'count':
                row[key] = float(group_means(values, outside, 2)[0])
        rows.append(row)
    return rows


def _quality_rows(images: Sequence[JudgedImage], num_classes: int,
                  groups: Optional[Tensor], names: Sequence[str],
                  thresholds: Dict[float, Union[float, Tensor]]
                  ) -> List[dict]:
    """Return a row for each threshold, whatever it is called, and group."""
    of_class = torch.zeros(
        num_classes, dtype=torch.long) if groups is None else groups
    judged = [image.judged for image in images]
    rows = []
    for called, thr in thresholds.items():
        found = quality_of_groups(judged, of_class, thr, max(len(names), 1))
        named = [('all', sum(found, PseudoLabelQuality()))]
        for name, quality in (*named, *zip(names, found)):
            rows.append(
                dict(
                    score_thr=called,
                    group=name,
                    pseudo_labels=quality.num_pseudo,
                    instances=quality.num_hidden,
                    matched=quality.num_matched,
                    precision=quality.precision,
                    recall=quality.recall,
                    iou=quality.iou))
    return rows


def _try_correction(mode: str, fit_images: Sequence[JudgedImage],
                    judged_images: Sequence[JudgedImage], num_classes: int,
                    groups: Optional[Tensor], names: Sequence[str],
                    score_thrs: Sequence[float], outcome: str,
                    num_bins: int) -> Tuple[dict, Tensor]:
    """Fit a correction to one half of the images and judge it on another."""
    calibrator = ClassCalibrator(num_classes, num_bins, groups, mode)
    calibrator.update(*_samples(fit_images, 'judged', outcome))
    calibrator.fit()
    scores, labels, outcomes = _samples(judged_images, 'judged', outcome)
    scores = calibrator.transform(scores, labels)
    statistics = collect_statistics(scores, labels, outcomes, num_classes,
                                    num_bins)
    measures = class_measures(statistics)
    squares = (scores.double() - outcomes.double())**2
    measures['brier'] = torch.zeros_like(measures['count']).index_add_(
        0, labels, squares) / measures['count']
    # The maps rise, so what is above a threshold after the correction is
    # above another one before, and matches stay as they are.
    thresholds = {
        thr: calibrator.score_thresholds(thr) if 0 < thr < 1
        and mode != 'none' else thr
        for thr in score_thrs
    }
    row = dict(
        mode=mode,
        groups=_group_rows(measures, groups, names),
        pseudo_labels=_quality_rows(judged_images, num_classes, groups, names,
                                    thresholds))
    return row, statistics


def _plain(value: Any) -> Any:
    """Replace numbers that are not defined by None, at any depth."""
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
