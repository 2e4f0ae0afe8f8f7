# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import mmcv
import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from prettytable import PrettyTable
from torch import Tensor

from mmsemi.registry import METRICS
from mmsemi.structures.confusion_matrix import (ConfusionMatrix, check_absent,
                                                unique_names)
from .boundary_iou import boundary_overlaps, check_dilation_ratio
from .confusion_picture import draw_confusion_matrix


@METRICS.register_module()
class SemanticMetric(BaseMetric):
    """Evaluate semantic segmentation of mmseg's data samples.

    The metrics are those of :class:`ConfusionMatrix`, in percent: ``PA``,
    ``MA``, ``mIoU``, ``FWIoU``, and ``IoU/CLASS`` and ``Acc/CLASS`` of every
    class. With ``boundary_iou`` come ``mBIoU`` and ``BIoU/CLASS``. Without a
    ``prefix`` the keys stand alone, so that ``save_best='mIoU'`` works.

    PA, MA and mIoU are aAcc, mAcc and mIoU of mmseg's IoUMetric; mmseg sums
    pixels as float32 and rounds, here they are integers. Counts are kept per
    image and images that a sampler adds to fill up a batch are dropped, so
    the values are the same for any number of processes.

    Args:
        ignore_index (int): True label of the pixels that do not count.
            Defaults to 255.
        absent (str): 'nan' leaves classes that do not occur out of the
            means, as mmseg does; 'zero' counts them as 0, as UniMatch and
            U2PL do. See :class:`ConfusionMatrix`. Defaults to 'nan'.
        boundary_iou (bool): Whether to compute the boundary IoU as well; see
            :func:`boundary_overlaps`. Defaults to False.
        dilation_ratio (float): Width of the boundaries as a share of the
            image's diagonal. Defaults to 0.02.
        per_class (bool): Whether the values of single classes are returned;
            the table shows them in any case. Defaults to True.
        decimals (int, optional): Decimals to round the values to; mmseg
            keeps 2. Defaults to None: not rounded.
        confusion_matrix_path (str, optional): Picture of the confusion
            matrix, ending with .png, .pdf or .svg. Every evaluation
            overwrites it. Defaults to None: none is drawn.
        output_dir (str, optional): Folder to write predictions to, as PNG
            files named after the images. Classes are raised by 1 where the
            data has ``reduce_zero_label``. Defaults to None: none.
        format_only (bool): Whether to write predictions and evaluate
            nothing, for test data without ground truth. Defaults to False.
        collect_device (str): 'cpu' or 'gpu': how processes exchange their
            counts. Defaults to 'cpu'.
        prefix (str, optional): Put before every key, with a slash. Defaults
            to None.
        collect_dir (str, optional): Folder that all processes see, for their
            exchange. Defaults to None: one in the current folder.

    Raises:
        ValueError: If an argument is out of range, or ``format_only`` comes
            without ``output_dir``.
    """

    # None would have mmengine warn of a missing prefix.
    default_prefix = ''

    PICTURES = ('.png', '.pdf', '.svg')

    def __init__(self,
                 ignore_index: int = 255,
                 absent: str = 'nan',
                 boundary_iou: bool = False,
                 dilation_ratio: float = 0.02,
                 per_class: bool = True,
                 decimals: Optional[int] = None,
                 confusion_matrix_path: Optional[str] = None,
                 output_dir: Optional[str] = None,
                 format_only: bool = False,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None,
                 collect_dir: Optional[str] = None) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        check_absent(absent)
        check_dilation_ratio(dilation_ratio)
        if confusion_matrix_path is not None and Path(
                confusion_matrix_path).suffix not in self.PICTURES:
            raise ValueError(
                f'confusion_matrix_path={confusion_matrix_path!r} must end '
                f'with one of {", ".join(self.PICTURES)}.')
        if format_only and output_dir is None:
            raise ValueError('format_only=True writes predictions and needs '
                             'output_dir.')
        self.ignore_index = ignore_index
        self.absent = absent
        self.boundary_iou = boundary_iou
        self.dilation_ratio = dilation_ratio
        self.per_class = per_class
        self.decimals = decimals
        self.confusion_matrix_path = confusion_matrix_path
        self.output_dir = output_dir
        self.format_only = format_only

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch.

        Args:
            data_batch (Any): Not used.
            data_samples (Sequence[dict]): Data samples as dicts, with
                ``pred_sem_seg`` and ``gt_sem_seg``, each with ``data``
                (1, H, W) of one size.

        Raises:
            ValueError: If a sample has no prediction or no ground truth, or
                they do not fit each other or the classes of the data.
        """
        for sample in data_samples:
            prediction = _label_map(sample, 'pred_sem_seg')
            if prediction is None:
                raise ValueError(f'There is no prediction (pred_sem_seg) of '
                                 f'{_name(sample)}.')
            if not self.format_only:
                self.results.append(self._count(prediction, sample))
            if self.output_dir is not None:
                self._write(prediction, sample)

    def evaluate(self, size: int) -> Dict[str, float]:
        """Compute the metrics from the counts of all processes.

        Args:
            size (int): Number of images of the data.

        Returns:
            dict[str, float]: The metrics; none with ``format_only``.

        Raises:
            ValueError: If no pixel was evaluated in any process.
        """
        if self.format_only:
            print_log(
                f'The predictions are in {self.output_dir}.', logger='current')
            return {}
        # Refused by all processes: one alone would let the others wait.
        counted = all_gather_object(
            (len(self.results),
             sum(int(result['counts'].sum()) for result in self.results)))
        num_images, num_pixels = map(sum, zip(*counted))
        if num_pixels == 0:
            reason = 'the evaluation saw no image' if num_images == 0 else \
                f'all pixels of all {num_images} images are ' \
                f'ignore_index={self.ignore_index}'
            self.results.clear()
            raise ValueError(
                f'mmsemi.SemanticMetric has nothing to evaluate: {reason}.')
        return super().evaluate(size)

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Compute the metrics from counts per image.

        Args:
            results (list[dict]): From :meth:`process`, one per image.

        Returns:
            dict[str, float]: The metrics in percent.
        """
        classes = self._classes()
        names = unique_names(classes, len(classes))
        matrix = self._matrix()
        for result in results:
            matrix.counts.view(-1).index_add_(0, result['cells'],
                                              result['counts'])
        metrics = matrix.metrics(names)
        columns = dict(
            Class=names,
            IoU=[metrics[f'IoU/{name}'] for name in names],
            Acc=[metrics[f'Acc/{name}'] for name in names])
        if self.boundary_iou:
            shares = self._boundary_shares(results)
            metrics['mBIoU'] = float(shares.nanmean())
            columns['BIoU'] = shares.tolist()
            metrics.update(
                {f'BIoU/{name}': v for name, v in zip(names, columns['BIoU'])})
        table = PrettyTable()
        for title, values in columns.items():
            table.add_column(
                title, values if title == 'Class' else np.round(values, 2))
        print_log(
            f'per class results:\n{table.get_string()}', logger='current')
        if self.confusion_matrix_path is not None:
            draw_confusion_matrix(matrix.counts, names,
                                  self.confusion_matrix_path)
        if not self.per_class:
            metrics = {k: v for k, v in metrics.items() if '/' not in k}
        if self.decimals is not None:
            metrics = {k: round(v, self.decimals) for k, v in metrics.items()}
        return metrics

    def _count(self, prediction: Tensor, sample: dict) -> Dict[str, Tensor]:
        """Count one image; most cells of its matrix are empty."""
        target = _label_map(sample, 'gt_sem_seg')
        if target is None:
            raise ValueError(
                f'There is no ground truth (gt_sem_seg) of {_name(sample)}. '
                'Load it in the pipeline (LoadAnnotations and PackSegInputs), '
                'or write the predictions only: evaluator format_only=True '
                'and output_dir.')
        try:
            counts = self._matrix().update(prediction, target).counts
        except ValueError as error:
            raise ValueError(f'{_name(sample)}: {error}') from None
        cells = counts.view(-1).nonzero().squeeze(1)
        result = dict(cells=cells, counts=counts.view(-1)[cells])
        if self.boundary_iou:
            result['boundary'] = torch.stack(
                boundary_overlaps(prediction, target, len(self._classes()),
                                  self.ignore_index, self.dilation_ratio))
        return result

    def _boundary_shares(self, results: List[dict]) -> Tensor:
        overlap, union = sum(result['boundary'] for result in results)
        shares = 100 * overlap.double() / union
        return shares.nan_to_num(0.) if self.absent == 'zero' else shares

    def _matrix(self) -> ConfusionMatrix:
        return ConfusionMatrix(
            len(self._classes()), self.ignore_index, self.absent)

    def _classes(self) -> Sequence[str]:
        classes = (self.dataset_meta or {}).get('classes')
        if not classes:
            raise ValueError(
                'mmsemi.SemanticMetric does not know the classes: the '
                "dataset's metainfo has no 'classes'. Set metainfo=dict("
                'classes=(...)) of the dataset, or, without a runner, '
                'dataset_meta of the metric.')
        return classes

    def _write(self, prediction: Tensor, sample: dict) -> None:
        if sample.get('img_path') is None:
            raise ValueError('output_dir names predictions after the images, '
                             'but the data samples have no img_path. Add it '
                             'to meta_keys of PackSegInputs.')
        labels = prediction.cpu().numpy()
        if sample.get('reduce_zero_label', False):
            labels = labels + 1
        depth = np.uint8 if labels.max() <= 255 else np.uint16
        file = Path(self.output_dir) / f'{Path(sample["img_path"]).stem}.png'
        mmcv.imwrite(labels.astype(depth), str(file))


def _label_map(sample: dict, field: str) -> Optional[Tensor]:
    """Return the classes (H, W), or None if the sample has none."""
    data = (sample.get(field) or {}).get('data')
    if data is None:
        return None
    # A prediction of one channel is thresholded to 0. and 1.
    return data.reshape(data.shape[-2:]).long()


def _name(sample: dict) -> str:
    return str(sample.get('img_path') or 'an image without img_path')
