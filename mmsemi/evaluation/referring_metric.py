# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch.nn.functional as F
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

from mmsemi.datasets.text_files import write_texts
from mmsemi.registry import METRICS

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@METRICS.register_module()
class ReferringMetric(BaseMetric):
    """Evaluate referring segmentation: overall IoU, mean IoU, precision.

    One case is one sentence. With I and U the intersection and the union, in
    pixels, of its predicted and its true mask,

    - ``oIoU`` = 100 * sum(I) / sum(U), also called cumulative or overall
      IoU: large objects count more;
    - ``mIoU`` = 100 * mean(I / U), where U = 0 counts as an IoU of 0;
    - ``P@0.5`` ... ``P@0.9`` = percentage of cases with I / U of at least
      that much.

    Without a ``prefix`` the keys stand alone, so that ``save_best='oIoU'``
    (with ``rule='greater'``) works. Counts are whole numbers, kept per sample,
    and samples that a sampler adds to fill up a batch are dropped, so the
    values are the same for any number of processes.

    LAVT and SemiRES compare at 480 x 480 pixels, to which the true mask is
    resized without keeping its aspect ratio: every image then has the same
    weight in oIoU. mmdet's ``RefSegMetric`` and the default here compare at
    the image's own size. The numbers are not the same; the log says which
    are shown.

    Args:
        eval_size (tuple[int, int], optional): Height and width in pixels that
            both masks are resized to (nearest pixel centre) before they are
            compared; (480, 480) for numbers to lay beside LAVT's. Predictions
            that were resized to the image's size before lose up to a pixel
            at their border. Defaults to None: the size of the true mask.
        ignore_index (int): True label of the pixels that do not count.
            Defaults to 255.
        dump_path (str, optional): JSON file for a list with an entry of
            every sentence: ``img_path``, ``ref_id``, ``sent_id``, ``text``,
            ``intersection``, ``union`` (pixels) and ``iou`` in [0, 1]. Every
            evaluation overwrites it. Defaults to None: none.
        collect_device (str): 'cpu' or 'gpu': how processes exchange their
            counts. Defaults to 'cpu'.
        prefix (str, optional): Put before every key, with a slash. Defaults
            to None.
        collect_dir (str, optional): Folder that all processes see, for their
            exchange. Defaults to None: one in the current folder.

    Raises:
        ValueError: If an argument is not as above.
    """

    # None would have mmengine warn of a missing prefix.
    default_prefix = ''

    def __init__(self,
                 eval_size: Optional[Tuple[int, int]] = None,
                 ignore_index: int = 255,
                 dump_path: Optional[str] = None,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None,
                 collect_dir: Optional[str] = None) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        if eval_size is not None and (
                not isinstance(eval_size, (list, tuple)) or len(eval_size) != 2
                or not all(
                    isinstance(side, int) and side > 0
                    for side in eval_size)):
            raise ValueError('ReferringMetric.eval_size must be None or '
                             f'(height, width) in pixels, got {eval_size!r}.')
        if dump_path is not None and Path(dump_path).suffix != '.json':
            raise ValueError('ReferringMetric.dump_path must end with .json, '
                             f'got {dump_path!r}.')
        self.eval_size = None if eval_size is None else tuple(eval_size)
        self.ignore_index = ignore_index
        self.dump_path = dump_path

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch.

        Args:
            data_batch (Any): Not used.
            data_samples (Sequence[dict]): Data samples as dicts, with
                ``pred_sem_seg`` and ``gt_sem_seg``: ``data`` (K, H, W) of one
                size with 1 on the object, a channel for each of the K
                sentences; the truth may have one channel for all. ``text``,
                ``ref_id`` and ``sent_id`` are one value or K of them.

        Raises:
            ValueError: If a sample has no prediction or no ground truth, or
                they do not fit each other.
        """
        for sample in data_samples:
            predictions, truths = self._maps(sample)
            cases = [
                self._count(prediction, truth)
                for prediction, truth in zip(predictions, truths)
            ]
            result: Dict[str, Any] = dict(cases=cases)
            if self.dump_path is not None:
                result['names'] = _names(sample, len(cases))
            self.results.append(result)

    def evaluate(self, size: int) -> Dict[str, float]:
        """Compute the metrics from the counts of all processes.

        Args:
            size (int): Number of samples of the data.

        Returns:
            dict[str, float]: The metrics in percent.

        Raises:
            ValueError: If no sample was seen in any process.
        """
        # Refused by all processes: one alone would let the others wait.
        if not any(all_gather_object(len(self.results))):
            raise ValueError('mmsemi.ReferringMetric has nothing to evaluate: '
                             'it saw no sample.')
        return super().evaluate(size)

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Compute the metrics from counts per sentence.

        Args:
            results (list[dict]): From :meth:`process`, one per sample.

        Returns:
            dict[str, float]: The metrics in percent.
        """
        cases = [case for result in results for case in result['cases']]
        metrics = referring_metrics(cases)
        where = "the true masks' own size" if self.eval_size is None else \
            '{} x {} pixels (height x width)'.format(*self.eval_size)
        print_log(
            f'{len(cases)} sentences compared at {where} (eval_size='
            f'{self.eval_size}).',
            logger='current')
        if self.dump_path is not None:
            names = [name for result in results for name in result['names']]
            entries = [
                dict(
                    name,
                    intersection=intersection,
                    union=union,
                    iou=intersection / union if union else 0.)
                for name, (intersection, union) in zip(names, cases)
            ]
            write_texts({Path(self.dump_path): json.dumps(entries)},
                        overwrite=True)
        return metrics

    def _maps(self, sample: dict) -> Tuple[Tensor, Tensor]:
        """Return predictions and truths (K, H, W), checked."""
        name = sample.get('img_path') or 'a sample without img_path'
        found = []
        for field, remedy in (
            ('pred_sem_seg', 'The model has to be a referring segmenter.'),
            ('gt_sem_seg', 'Load it in the pipeline: '
             'mmsemi.LoadReferringMask and mmsemi.PackSegInputs.')):
            data = (sample.get(field) or {}).get('data')
            if data is None:
                raise ValueError(f'There is no {field} of {name}. {remedy}')
            found.append(data.reshape(-1, *data.shape[-2:]))
        predictions, truths = found
        if len(truths) == 1:
            truths = truths.expand(len(predictions), -1, -1)
        fits = len(truths) == len(predictions) and (
            self.eval_size is not None or truths.shape == predictions.shape)
        if not fits or len(truths) == 0:
            raise ValueError(
                f'Prediction {tuple(predictions.shape)} and ground truth '
                f'{tuple(truths.shape)} of {name} do not fit; both must be '
                '(sentences, height, width).')
        return predictions, truths.to(predictions.device)

    def _count(self, prediction: Tensor, truth: Tensor) -> Tuple[int, int]:
        """Intersection and union of one sentence, in pixels."""
        prediction, truth = (
            resize_labels(labels, self.eval_size)
            for labels in (prediction, truth))
        counted = truth != self.ignore_index
        prediction = (prediction == 1) & counted
        truth = truth == 1
        return (int((prediction & truth).sum()),
                int((prediction | truth).sum()))


def referring_metrics(cases: Sequence[Tuple[int, int]]) -> Dict[str, float]:
    """Return oIoU, mIoU and precisions from intersections and unions.

    The source of the definitions is the evaluation code of LAVT (CVPR 2022)
    and SemiRES (ICML 2024, arXiv 2406.01451); the papers do not say what an
    empty union counts as, nor whether a threshold itself is enough.

    Args:
        cases (Sequence[tuple[int, int]]): Intersection and union of every
            sentence in pixels, at least one.

    Returns:
        dict[str, float]: ``oIoU``, ``mIoU``, ``P@0.5`` ... ``P@0.9``, in
        percent. An oIoU without any pixel is 0.
    """
    # The quotient of two whole numbers is rounded correctly: 3 / 5 >= 0.6.
    shares = [part / whole if whole else 0. for part, whole in cases]
    whole = sum(case[1] for case in cases)
    metrics = dict(
        oIoU=100 * sum(case[0] for case in cases) / whole if whole else 0.,
        mIoU=100 * sum(shares) / len(shares))
    for threshold in THRESHOLDS:
        reached = sum(share >= threshold for share in shares)
        metrics[f'P@{threshold}'] = 100 * reached / len(shares)
    return metrics


def resize_labels(labels: Tensor, size: Optional[Tuple[int, int]]) -> Tensor:
    """Resize a label map, each pixel from the nearest pixel centre.

    Args:
        labels (Tensor): Shape (H, W), labels of 0 to 255.
        size (tuple[int, int], optional): Height and width in pixels; None
            for the size that it has.

    Returns:
        Tensor: Shape ``size``, of the same dtype.
    """
    if size is None or tuple(labels.shape) == tuple(size):
        return labels
    resized = F.interpolate(
        labels[None, None].float(), size=tuple(size), mode='nearest-exact')
    return resized[0, 0].to(labels.dtype)


def _names(sample: dict, number: int) -> List[dict]:
    """Return what tells the sentences of a sample, one dict for each."""
    columns = {}
    for key in ('img_path', 'ref_id', 'sent_id', 'text'):
        value = sample.get(key)
        if not isinstance(value, (list, tuple)):
            value = [value] * number
        if len(value) != number:
            raise ValueError(f'{key} has {len(value)} values for {number} '
                             f'sentences of {sample.get("img_path")}.')
        columns[key] = value
    return [{key: value[i]
             for key, value in columns.items()} for i in range(number)]
