# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from prettytable import PrettyTable
from torch import Tensor

from mmsemi.pseudo_labels.calibration_measures import (calibration_error,
                                                       class_counts,
                                                       collect_statistics,
                                                       debiased_squared_error,
                                                       group_means,
                                                       null_calibration_error)
from mmsemi.pseudo_labels.class_hierarchy import (check_groups,
                                                  read_class_groups)
from mmsemi.pseudo_labels.outcomes import (check_outcome, instance_overlaps,
                                           judge_predictions)
from mmsemi.registry import METRICS
from mmsemi.structures.confusion_matrix import unique_names

# With more classes the table shows groups only.
MOST_IN_TABLE = 100


@METRICS.register_module()
class CalibrationMetric(BaseMetric):
    """Measure how far the confidence of instances is from being right.

    All values are in [-1, 1], not in percent:

    - ``CCECE``: class-conditional calibration error, the mean over classes
      of the mean absolute gap between outcome and confidence in bins.
    - ``signedCCECE``: the same with signs, above 0 for under-confidence.
    - ``excessCCECE``: ``CCECE`` above what luck gives calibrated classes
      with as few predictions.
    - ``squaredCE``: squared error without the bias of few predictions.
    - ``LaECE``: as ``CCECE``, with the IoU of right predictions as outcome
      and bins and matching of its own. With the defaults this is LaECE_0 of
      S. Kuzucu et al., On Calibration of Object Detectors, ECCV 2024. Their
      code leaves classes without any error out of the mean; here they are 0.
    - ``unmeasured``: number of classes with too few predictions. They are
      NaN and in no mean.

    Each class counts alike. Means of groups have a suffix, ``CCECE_r``,
    single classes stand behind a slash, ``CCECE/cat`` and
    ``signedCCECE/cat``.

    Results are kept per image and images that a sampler adds to fill up a
    batch are dropped, so the values are the same for any number of
    processes. After the evaluation the main process holds what was counted
    in ``statistics`` and ``iou_statistics`` (C, B, 3).

    Federated data such as LVIS is judged by its rules where data samples
    have ``neg_category_ids``, label indices, and optionally
    ``not_exhaustive_category_ids``; list both in ``meta_keys``. See
    :func:`judge_predictions`.

    Args:
        num_bins (int): Bins of equal width. Defaults to 15.
        iou_thr (float): Least IoU of a right prediction, of masks or, where
            there are none, of boxes. Defaults to 0.5.
        outcome (str): 'match', 'class' or 'iou'; see
            :meth:`PredictionOutcomes.outcomes`. Not for LaECE. Defaults to
            'match'.
        score_thr (float): Lowest score of what is measured. Defaults to 0.
        min_count (int): Classes with fewer predictions are not measured.
            Defaults to 1.
        groups (Sequence[int] or str, optional): Group of each class, from
            0, or an annotation file of the labelled data, see
            :func:`read_class_groups`. Defaults to None: no groups.
        group_names (Sequence[str]): Their suffixes. Defaults to ('r', 'c',
            'f'), for rare, common and frequent.
        la_num_bins (int): Bins of LaECE. Defaults to 25.
        la_iou_thr (float): Least IoU of a right prediction in LaECE; with 0
            any overlap is enough. Defaults to 0.
        per_class (bool): Whether the values of single classes are returned.
            Defaults to True.
        diagram_path (str, optional): Picture of reliability diagrams, ending
            with .png, .pdf or .svg. Every evaluation overwrites it. Defaults
            to None: none is drawn.
        collect_device (str): 'cpu' or 'gpu': how processes exchange their
            results. Defaults to 'cpu'.
        prefix (str, optional): Put before every key, with a slash. Defaults
            to None: 'calibration'.
        collect_dir (str, optional): Folder that all processes see, for their
            exchange. Defaults to None: one in the current folder.

    Raises:
        ValueError: If an argument is out of range.
    """

    default_prefix = 'calibration'

    PICTURES = ('.png', '.pdf', '.svg')

    def __init__(self,
                 num_bins: int = 15,
                 iou_thr: float = 0.5,
                 outcome: str = 'match',
                 score_thr: float = 0.,
                 min_count: int = 1,
                 groups: Union[Sequence[int], str, None] = None,
                 group_names: Sequence[str] = ('r', 'c', 'f'),
                 la_num_bins: int = 25,
                 la_iou_thr: float = 0.,
                 per_class: bool = True,
                 diagram_path: Optional[str] = None,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None,
                 collect_dir: Optional[str] = None) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        least = dict(num_bins=num_bins, la_num_bins=la_num_bins,
                     min_count=min_count)
        for name, value in least.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'CalibrationMetric.{name}={value!r}; '
                                 'allowed are whole numbers from 1.')
        shares = dict(
            iou_thr=iou_thr, la_iou_thr=la_iou_thr, score_thr=score_thr)
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f'CalibrationMetric.{name}={value!r}; '
                                 'allowed are numbers from 0 to 1.')
        check_outcome(outcome, 'CalibrationMetric.outcome')
        if diagram_path is not None and Path(
                diagram_path).suffix not in self.PICTURES:
            raise ValueError(f'diagram_path={diagram_path!r} must end with '
                             f'one of {", ".join(self.PICTURES)}.')
        self.num_bins = num_bins
        self.iou_thr = iou_thr
        self.outcome = outcome
        self.score_thr = score_thr
        self.min_count = min_count
        self.groups = groups
        self.group_names = tuple(group_names)
        self.la_num_bins = la_num_bins
        self.la_iou_thr = la_iou_thr
        self.per_class = per_class
        self.diagram_path = diagram_path
        self.statistics: Optional[Tensor] = None
        self.iou_statistics: Optional[Tensor] = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Judge the predictions of a batch.

        Args:
            data_batch (Any): Not used.
            data_samples (Sequence[dict]): Data samples as dicts, with
                ``pred_instances`` and ``gt_instances`` of one scale, and
                ``ignored_instances`` where there are crowd regions.

        Raises:
            ValueError: If a sample has no prediction or no ground truth, or
                their masks differ in size.
        """
        for sample in data_samples:
            self.results.append(self._judge(sample))

    def _judge(self, sample: dict) -> Dict[str, Tensor]:
        name = str(sample.get('img_path') or 'an image without img_path')
        predictions = _instances(sample, 'pred_instances')
        truth = _instances(sample, 'gt_instances')
        if predictions is None:
            raise ValueError('There is no prediction (pred_instances) of '
                             f'{name}.')
        if truth is None or 'labels' not in truth:
            raise ValueError(
                f'There is no ground truth (gt_instances) of {name}. Load it '
                'in the test pipeline: LoadAnnotations with_bbox=True, '
                'with_mask=True after Resize, and PackDetInputs.')
        _check_scale(predictions, truth, name)
        predictions = predictions[predictions.scores >= self.score_thr]
        ignored = _instances(sample, 'ignored_instances')
        if ignored is not None and 'labels' not in ignored:
            ignored = None
        overlaps = shares = None
        if len(predictions) and len(truth):
            overlaps = instance_overlaps(predictions, truth)
        if len(predictions) and ignored is not None and len(ignored):
            shares = instance_overlaps(predictions, ignored, iscrowd=True)

        def judge(iou_thr: float, outcome: str) -> tuple:
            return judge_predictions(
                predictions,
                truth,
                ignored,
                iou_thr,
                negative_labels=sample.get('neg_category_ids'),
                not_exhaustive_labels=sample.get(
                    'not_exhaustive_category_ids') or (),
                overlaps=overlaps,
                crowd_shares=shares).outcomes(outcome)

        right, counted = judge(self.iou_thr, self.outcome)
        iou, iou_counted = judge(self.la_iou_thr, 'iou')
        result = dict(
            scores=predictions.scores.float(),
            labels=predictions.labels,
            right=right,
            counted=counted,
            iou=iou,
            iou_counted=iou_counted)
        return {k: v.detach().cpu() for k, v in result.items()}

    def evaluate(self, size: int) -> Dict[str, float]:
        """Compute the metrics from the results of all processes.

        Args:
            size (int): Number of images of the data.

        Returns:
            dict[str, float]: The metrics.

        Raises:
            ValueError: If the groups do not fit the classes or their names,
                or the data does not name its classes.
        """
        # Refused by all processes: one alone would let the others wait.
        self._groups(self._classes())
        return super().evaluate(size)

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Compute the metrics from what was judged per image.

        Args:
            results (list[dict]): From :meth:`process`, one per image.

        Returns:
            dict[str, float]: The metrics.
        """
        classes = self._classes()
        groups = self._groups(classes)
        self.statistics = self._collect(results, len(classes), 'right',
                                        'counted', self.num_bins)
        self.iou_statistics = self._collect(results, len(classes), 'iou',
                                            'iou_counted', self.la_num_bins)
        values = self._values()
        metrics = {k: float(v.nanmean()) for k, v in values.items()}
        metrics['unmeasured'] = float(values['CCECE'].isnan().sum())
        rows = [('all', metrics)]
        if groups is not None:
            for suffix, means in self._group_means(values, groups).items():
                metrics.update(
                    {f'{k}_{suffix}': mean for k, mean in means.items()})
                rows.append((suffix, means))
        names = unique_names(classes, len(classes))
        if len(names) <= MOST_IN_TABLE:
            rows += [(name, {k: float(v[i]) for k, v in values.items()})
                     for i, name in enumerate(names)]
        self._print(rows)
        if self.per_class:
            metrics.update({
                f'{key}/{name}': float(value)
                for key in ('CCECE', 'signedCCECE')
                for name, value in zip(names, values[key])
            })
        if self.diagram_path is not None:
            # It loads matplotlib.
            from mmsemi.visualization.reliability_diagrams import \
                draw_reliability_diagrams
            draw_reliability_diagrams(
                self.statistics,
                groups,
                self.group_names,
                path=self.diagram_path)
        return metrics

    def _collect(self, results: List[dict], num_classes: int, outcome: str,
                 counted: str, num_bins: int) -> Tensor:
        if not results:
            return torch.zeros((num_classes, num_bins, 3),
                               dtype=torch.float64)
        kept = torch.cat([result[counted] for result in results])
        scores, labels, outcomes = (
            torch.cat([result[key] for result in results])[kept]
            for key in ('scores', 'labels', outcome))
        if len(labels) and labels.max() >= num_classes:
            raise ValueError(
                f'The model predicts class {int(labels.max())}, but the '
                f"data's metainfo names only {num_classes} classes.")
        return collect_statistics(scores, labels, outcomes, num_classes,
                                  num_bins)

    def _values(self) -> Dict[str, Tensor]:
        """Return the measures of every class, NaN for unmeasured ones."""
        error = calibration_error(self.statistics, min_count=self.min_count)
        unmeasured = error.isnan()
        values = dict(
            CCECE=error,
            signedCCECE=calibration_error(self.statistics, signed=True),
            excessCCECE=error - null_calibration_error(self.statistics),
            squaredCE=debiased_squared_error(self.statistics),
            LaECE=calibration_error(
                self.iou_statistics, min_count=self.min_count))
        return {
            k: v if k == 'LaECE' else v.masked_fill(unmeasured, torch.nan)
            for k, v in values.items()
        }

    def _classes(self) -> Sequence[str]:
        classes = (self.dataset_meta or {}).get('classes')
        if not classes:
            raise ValueError(
                'mmsemi.CalibrationMetric does not know the classes: the '
                "dataset's metainfo has no 'classes'. Set metainfo=dict("
                'classes=(...)) of the dataset.')
        return classes

    def _groups(self, classes: Sequence[str]) -> Optional[Tensor]:
        if self.groups is None:
            return None
        groups = self.groups
        if isinstance(groups, str):
            groups = read_class_groups(groups, classes)
        groups = check_groups(groups, len(classes), 'CalibrationMetric.groups')
        if groups.max() >= len(self.group_names):
            raise ValueError(
                f'CalibrationMetric.groups has the group {int(groups.max())}, '
                f'but group_names={self.group_names} names only '
                f'{len(self.group_names)}.')
        return groups

    def _group_means(self, values: Dict[str, Tensor],
                     groups: Tensor) -> Dict[str, Dict[str, float]]:
        means = {
            key: group_means(value, groups, len(self.group_names)).tolist()
            for key, value in values.items()
        }
        return {
            name: {key: mean[i]
                   for key, mean in means.items()}
            for i, name in enumerate(self.group_names)
        }

    def _print(self, rows: List[tuple]) -> None:
        measured = class_counts(self.statistics)
        table = PrettyTable()
        keys = ('CCECE', 'signedCCECE', 'excessCCECE', 'squaredCE', 'LaECE')
        table.field_names = ['', *keys]
        for name, values in rows:
            table.add_row([name, *(f'{values[key]:.4f}' for key in keys)])
        print_log(
            f'calibration of {int(measured.sum())} predictions, '
            f'{int(rows[0][1]["unmeasured"])} classes unmeasured:\n'
            f'{table.get_string()}',
            logger='current')


def _instances(sample: dict, field: str) -> Optional[InstanceData]:
    """Return instances that a data sample holds as a dict."""
    found = sample.get(field)
    if found is None:
        return None
    fields = ('labels', 'scores', 'bboxes', 'masks')
    return InstanceData(**{k: found[k] for k in fields if k in found})


def _check_scale(predictions: InstanceData, truth: InstanceData,
                 name: str) -> None:
    if 'masks' not in predictions or 'masks' not in truth or not len(truth):
        return
    if not isinstance(predictions.masks, Tensor):
        raise ValueError(
            'mmsemi.CalibrationMetric takes predicted masks as a tensor '
            f'(N, H, W), got {type(predictions.masks).__name__} for {name}.')
    size = tuple(predictions.masks.shape[1:])
    masks = truth.masks
    true_size = tuple(masks.shape[1:]) if isinstance(
        masks, Tensor) else (masks.height, masks.width)
    if len(predictions) and size != true_size:
        raise ValueError(
            f'The predicted masks of {name} have {size} pixels, its true '
            f'ones {true_size}. Put LoadAnnotations after Resize in the '
            'test pipeline, so that the truth keeps the original size.')
