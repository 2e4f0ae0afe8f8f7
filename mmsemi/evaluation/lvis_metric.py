# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Average precision on LVIS, without the package ``lvis``."""
from collections import defaultdict
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
from mmdet.structures.mask import encode_mask_results
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from prettytable import PrettyTable
from torch import Tensor

from mmsemi.compat import is_installed
from mmsemi.datasets.lvis import LVIS_FREQUENCIES, check_lvis, lvis_categories
from mmsemi.registry import METRICS

METRIC_TYPES = ('bbox', 'segm')
AREAS = dict(s='small', m='medium', l='large')
# Categories at once: the evaluation holds a list for every pair of image and
# category, 24 million for LVIS val.
CHUNK = 50


@METRICS.register_module()
class LVISMetric(BaseMetric):
    """Average precision by the rules of LVIS.

    A. Gupta et al., LVIS: A Dataset for Large Vocabulary Instance
    Segmentation, CVPR 2019. It is COCO's AP with three differences: at most
    300 instances of an image count, over all classes; instances of classes
    that an image was not searched for are dropped, which leaves the classes
    annotated in it and its ``neg_category_ids``; and what finds nothing is
    no error where the class is in ``not_exhaustive_category_ids``.

    Metrics, in [0, 1], -1 where nothing is annotated: ``AP``, ``AP50``,
    ``AP75``, by size ``APs``, ``APm``, ``APl``, and ``APr``, ``APc``,
    ``APf``, the means over rare, common and frequent classes, each as
    ``bbox_AP`` or ``segm_AP``. Names are those of mmdet's ``LVISMetric``,
    which needs ``lvis``, a package that fails with NumPy 2. Values are not
    rounded.

    The matching is that of the package ``faster-coco-eval``.

    Args:
        ann_file (str): Annotations of LVIS v1. All its images count.
        metric (str or Sequence[str]): 'bbox', 'segm' or both. Defaults to
            'segm'.
        max_dets (int): Most instances of an image. Defaults to 300.
        classwise (bool): Whether AP of every class is returned as well, as
            ``segm_AP/cat``. Defaults to False.
        backend_args (dict, optional): Of mmengine's file client. Defaults to
            None.
        collect_device (str): 'cpu' or 'gpu': how processes exchange their
            results. Defaults to 'cpu'.
        prefix (str, optional): Put before every key, with a slash. Defaults
            to None: 'lvis'.

    Raises:
        ImportError: If ``faster-coco-eval`` is not installed.
        ValueError: If an argument is out of range.
    """

    default_prefix: Optional[str] = 'lvis'

    def __init__(self,
                 ann_file: str,
                 metric: Union[str, Sequence[str]] = 'segm',
                 max_dets: int = 300,
                 classwise: bool = False,
                 backend_args: Optional[dict] = None,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not is_installed('faster_coco_eval'):
            raise ImportError('mmsemi.LVISMetric needs faster-coco-eval: pip '
                              'install faster-coco-eval.')
        metrics = [metric] if isinstance(metric, str) else list(metric)
        if not metrics or not {*metrics} <= {*METRIC_TYPES}:
            raise ValueError(f'mmsemi.LVISMetric.metric={metric!r}; allowed '
                             f'are {", ".join(map(repr, METRIC_TYPES))}.')
        if isinstance(max_dets, bool) or not isinstance(
                max_dets, int) or max_dets < 1:
            raise ValueError(f'mmsemi.LVISMetric.max_dets={max_dets!r}; '
                             'allowed are whole numbers from 1.')
        self.ann_file = ann_file
        self.metrics = metrics
        self.max_dets = max_dets
        self.classwise = classwise
        self.backend_args = backend_args
        self._truth: Optional[Any] = None

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep what counts of a batch's predictions.

        Args:
            data_batch (dict): Not looked at.
            data_samples (Sequence[dict]): With ``img_id`` and
                ``pred_instances``: ``bboxes``, ``labels``, ``scores``, for
                'segm' ``masks`` and possibly ``mask_scores``, by which masks
                are then ranked.

        Raises:
            ValueError: If masks are to be evaluated and there are none.
        """
        for sample in data_samples:
            found = sample['pred_instances']
            result = dict(img_id=sample['img_id'])
            for metric in self.metrics:
                scores = found['scores']
                if metric == 'segm':
                    if 'masks' not in found:
                        raise ValueError(
                            "mmsemi.LVISMetric.metric has 'segm', but the "
                            "model predicts no masks; use metric='bbox'.")
                    scores = found.get('mask_scores', scores)
                order = scores.argsort(descending=True, stable=True)
                order = order[:self.max_dets]
                kept = dict(
                    labels=found['labels'][order].cpu().numpy(),
                    scores=scores[order].float().cpu().numpy())
                if metric == 'segm':
                    kept['masks'] = _encoded(found['masks'], order)
                else:
                    kept['bboxes'] = found['bboxes'][order].float().cpu(
                    ).numpy()
                result[metric] = kept
            self.results.append(result)

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Compute the metrics from the results of all images.

        Args:
            results (list[dict]): From :meth:`process`.

        Returns:
            dict[str, float]: The metrics.
        """
        truth = self._load_truth()
        categories = lvis_categories(truth.dataset['categories'],
                                     (self.dataset_meta or {}).get('classes'),
                                     self.ann_file)
        metrics, table = {}, PrettyTable()
        for metric in self.metrics:
            found = self._detections(results, metric, categories)
            values, per_class = self._evaluate(found, metric, categories)
            table.field_names = ['', *values]
            table.add_row([metric, *(f'{v:.4f}' for v in values.values())])
            metrics.update({f'{metric}_{k}': v for k, v in values.items()})
            if self.classwise:
                metrics.update({
                    f'{metric}_AP/{category["name"]}': float(value)
                    for category, value in zip(categories, per_class)
                })
        print_log(f'LVIS:\n{table.get_string()}', logger='current')
        return metrics

    def _load_truth(self) -> Any:
        if self._truth is None:
            from faster_coco_eval import COCO
            with get_local_path(
                    self.ann_file, backend_args=self.backend_args) as path:
                truth = COCO(path)
            check_lvis(truth.dataset, self.ann_file)
            self._truth = truth
        return self._truth

    def _detections(self, results: List[dict], metric: str,
                    categories: List[dict]) -> Dict[int, List[dict]]:
        """Return what counts, by category."""
        searched = {
            image['id']: {*image['neg_category_ids']}
            for image in self._truth.dataset['images']
        }
        for annotation in self._truth.dataset['annotations']:
            searched[annotation['image_id']].add(annotation['category_id'])
        found = defaultdict(list)
        for result in results:
            image = int(result['img_id'])
            if image not in searched:
                raise ValueError(
                    f'{self.ann_file} of mmsemi.LVISMetric has no image '
                    f'{image}; it must be the ann_file of the data.')
            kept = result[metric]
            for i, label in enumerate(kept['labels']):
                if label >= len(categories):
                    raise ValueError(
                        f'The model predicts class {label}, but the data '
                        f'have {len(categories)} classes.')
                category = categories[label]['id']
                if category not in searched[image]:
                    continue
                instance = dict(
                    image_id=image,
                    category_id=category,
                    score=float(kept['scores'][i]))
                if metric == 'segm':
                    instance['segmentation'] = kept['masks'][i]
                else:
                    x1, y1, x2, y2 = kept['bboxes'][i].tolist()
                    instance['bbox'] = [x1, y1, x2 - x1, y2 - y1]
                found[category].append(instance)
        return found

    def _evaluate(self, found: Dict[int, List[dict]], metric: str,
                  categories: List[dict]) -> tuple:
        ids = [category['id'] for category in categories]
        # Categories are evaluated in the order of their ids.
        ordered = sorted(ids)
        precision = np.concatenate([
            self._precision(found, metric, ordered[start:start + CHUNK])
            for start in range(0, len(ids), CHUNK)
        ], 2)
        precision = precision[:, :, [ordered.index(i) for i in ids]]
        # Thresholds 0.5, 0.55, ... 0.95; the first area is all areas.
        values = dict(
            AP=_mean(precision[..., 0]),
            AP50=_mean(precision[0, ..., 0]),
            AP75=_mean(precision[5, ..., 0]))
        for area, key in enumerate(AREAS, 1):
            values[f'AP{key}'] = _mean(precision[..., area])
        groups = np.array([category['frequency'] for category in categories])
        for key in LVIS_FREQUENCIES:
            values[f'AP{key}'] = _mean(precision[:, :, groups == key, 0])
        per_class = [_mean(precision[:, :, i, 0]) for i in range(len(ids))]
        return values, per_class

    def _precision(self, found: Dict[int, List[dict]], metric: str,
                   ids: List[int]) -> np.ndarray:
        """Return precision (thresholds, recalls, categories, areas)."""
        from faster_coco_eval import COCOeval_faster
        detections = [instance for i in ids for instance in found[i]]
        evaluation = COCOeval_faster(
            self._truth,
            self._truth.loadRes(detections),
            metric,
            lvis_style=True)
        evaluation.params.catIds = ids
        # Per image and category, so the limit per image holds all the more.
        evaluation.params.maxDets = [self.max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval['precision'])
        return precision[..., 0]


def _encoded(masks: Union[Tensor, list], order: Tensor) -> List[dict]:
    if isinstance(masks, Tensor):
        return encode_mask_results(masks[order].cpu().numpy())
    return [masks[i] for i in order.tolist()]


def _mean(precision: np.ndarray) -> float:
    """Return the mean over what is annotated."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.
