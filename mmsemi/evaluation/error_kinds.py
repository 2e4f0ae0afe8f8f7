# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What an instance segmenter does wrong: the class, or the place."""
import io
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

IOU_TYPES = ('segm', 'bbox')


@dataclass
class ErrorCounts:
    """Predictions and instances by what became of them.

    Every prediction is of one kind, in this order; T is the IoU that makes
    a prediction right, t the one below which it shows nothing.

    Args:
        right (int): The class of an instance and an IoU of T or more, and no
            prediction with a higher score has it.
        localization (int): Of the class of an instance with an IoU from t
            to T.
        classification (int): An IoU of T or more with an instance of
            another class.
        duplicate (int): As right, but the instance is taken.
        background (int): No IoU of t or more with any instance.
        both (int): All others: another class, and an IoU from t to T.
        ignored (int): In crowd regions of their class, which neither are
            right nor wrong; in no other number.
        instances (int): Instances, without crowd regions.
        missed (int): Of these, such as have no right prediction and none
            whose error is the class or the place alone.
    """

    right: int = 0
    localization: int = 0
    classification: int = 0
    duplicate: int = 0
    background: int = 0
    both: int = 0
    ignored: int = 0
    instances: int = 0
    missed: int = 0

    def __add__(self, other: 'ErrorCounts') -> 'ErrorCounts':
        theirs = asdict(other)
        return ErrorCounts(
            **{name: n + theirs[name]
               for name, n in asdict(self).items()})

    @property
    def predictions(self) -> int:
        """int: Predictions that count."""
        return (self.right + self.localization + self.classification +
                self.duplicate + self.background + self.both)

    @property
    def class_accuracy(self) -> float:
        """float: Share of right classes where the mask is right; NaN without
        any such mask."""
        masks = self.right + self.classification
        return self.right / masks if masks else float('nan')

    @property
    def mask_accuracy(self) -> float:
        """float: Share of right masks where the class is right; NaN without
        any such class."""
        classes = self.right + self.localization
        return self.right / classes if classes else float('nan')

    def to_dict(self) -> Dict[str, Any]:
        """Return all numbers; None where one is not defined.

        Returns:
            dict: The fields, ``predictions``, ``class_accuracy`` and
            ``mask_accuracy``.
        """
        values = asdict(self)
        for name in ('predictions', 'class_accuracy', 'mask_accuracy'):
            value = getattr(self, name)
            values[name] = value if value == value else None
        return values


def sort_errors(ious: np.ndarray,
                labels: np.ndarray,
                scores: np.ndarray,
                true_labels: np.ndarray,
                in_crowd: np.ndarray,
                iou_thr: float = 0.5,
                background_thr: float = 0.1) -> ErrorCounts:
    """Find out what became of the predictions of one image.

    Kinds and their order are those of D. Bolya et al., TIDE: A General
    Toolbox for Identifying Object Detection Errors, ECCV 2020 (arXiv
    2008.08115). Predictions take instances in the order of their scores,
    each the one of its class with the highest IoU that is left.

    Args:
        ious (ndarray): (P, G), of predictions with instances.
        labels (ndarray): (P,), predicted classes.
        scores (ndarray): (P,).
        true_labels (ndarray): (G,).
        in_crowd (ndarray): (P,) bool, whether it lies in a crowd region of
            its class.
        iou_thr (float): T. Defaults to 0.5.
        background_thr (float): t. Defaults to 0.1.

    Returns:
        ErrorCounts: Of the image.
    """
    counts = ErrorCounts(instances=len(true_labels))
    taken = np.zeros(len(true_labels), bool)
    seen = taken.copy()
    wrong = []
    for i in np.argsort(-scores, kind='stable'):
        own = np.where((labels[i] == true_labels) & ~taken, ious[i], -1.)
        if len(own) and own.max() >= iou_thr:
            taken[own.argmax()] = True
            counts.right += 1
        elif in_crowd[i]:
            counts.ignored += 1
        else:
            wrong.append(i)
    for i in wrong:
        same = labels[i] == true_labels
        best_own = np.max(ious[i], where=same, initial=0.)
        best_other = np.max(ious[i], where=~same, initial=0.)
        if background_thr <= best_own < iou_thr:
            counts.localization += 1
            seen[np.where(same, ious[i], -1.).argmax()] = True
        elif best_other >= iou_thr:
            counts.classification += 1
            seen[np.where(same, -1., ious[i]).argmax()] = True
        elif best_own >= iou_thr:
            counts.duplicate += 1
        elif max(best_own, best_other) < background_thr:
            counts.background += 1
        else:
            counts.both += 1
    counts.missed = int((~taken & ~seen).sum())
    return counts


class ErrorAnalysis:
    """Compare predictions with annotations, with classes and without.

    Args:
        truth (COCO): Annotations in COCO's format, every image searched for
            every class.
        results (Sequence[dict]): Predictions in COCO's format for results:
            ``image_id``, ``category_id``, ``score`` and ``segmentation``
            or ``bbox``.
        iou_type (str): 'segm' for masks or 'bbox'. Defaults to 'segm'.

    Raises:
        ValueError: If ``iou_type`` is another, or the annotations do not
            say of every image which instances it has.
    """

    def __init__(self,
                 truth: COCO,
                 results: Sequence[dict],
                 iou_type: str = 'segm') -> None:
        if iou_type not in IOU_TYPES:
            raise ValueError(f'iou_type={iou_type!r}; allowed are '
                             f'{", ".join(map(repr, IOU_TYPES))}.')
        check_exhaustive(truth)
        self.truth = truth
        self.results = list(results)
        self.iou_type = iou_type

    def error_counts(self,
                     score_thr: float = 0.,
                     iou_thr: float = 0.5,
                     background_thr: float = 0.1) -> ErrorCounts:
        """Count errors by kind.

        Args:
            score_thr (float): Predictions count if they score strictly
                more. Defaults to 0.
            iou_thr (float): T of :class:`ErrorCounts`, above 0 up to 1.
                Defaults to 0.5.
            background_thr (float): t, above 0 and below T. Defaults to 0.1.

        Returns:
            ErrorCounts: Over all images.

        Raises:
            ValueError: If a threshold is out of range.
        """
        if not 0 <= score_thr <= 1:
            raise ValueError(f'score_thr={score_thr}; allowed are numbers '
                             'from 0 to 1.')
        if not 0 < background_thr < iou_thr <= 1:
            raise ValueError(
                f'background_thr={background_thr}, iou_thr={iou_thr}; '
                'allowed are numbers above 0 up to 1, the first below the '
                'second.')
        by_image: Dict[Any, List[dict]] = {
            number: []
            for number in self.truth.getImgIds()
        }
        for result in self.results:
            if result['score'] > score_thr:
                by_image[result['image_id']].append(result)
        total = ErrorCounts()
        for number, found in by_image.items():
            total += self._sort_image(number, found, iou_thr, background_thr)
        return total

    def _sort_image(self, number: Any, found: List[dict], iou_thr: float,
                    background_thr: float) -> ErrorCounts:
        annotations = self.truth.loadAnns(self.truth.getAnnIds(number))
        crowds = [a for a in annotations if a.get('iscrowd')]
        real = [a for a in annotations if not a.get('iscrowd')]
        labels, true_labels, crowd_labels = (
            np.array([a['category_id'] for a in part], int)
            for part in (found, real, crowds))
        shares = self._ious(found, crowds, crowd=True)
        own = labels[:, None] == crowd_labels
        return sort_errors(
            self._ious(found, real), labels,
            np.array([a['score'] for a in found], float), true_labels,
            ((shares >= iou_thr) & own).any(1), iou_thr, background_thr)

    def _ious(self,
              found: List[dict],
              real: List[dict],
              crowd: bool = False) -> np.ndarray:
        if not found or not real:
            return np.zeros((len(found), len(real)))
        if self.iou_type == 'bbox':
            parts = [[a['bbox'] for a in part] for part in (found, real)]
        else:
            parts = [[a['segmentation'] for a in found],
                     [self.truth.annToRLE(a) for a in real]]
        return np.asarray(mask_utils.iou(*parts, [crowd] * len(real)))

    def average_precision(self,
                          use_classes: bool = True,
                          nms_thr: float = 0.5) -> Dict[str, float]:
        """Compute COCO's AP, with classes or without.

        Without classes every instance and every prediction is of one class.
        Of predictions that overlap by more than ``nms_thr`` only the best
        stays then: a segmenter that cannot decide between classes names the
        same object several times.

        Args:
            use_classes (bool): Defaults to True.
            nms_thr (float): Greatest IoU of two predictions, without
                classes; 1 keeps all but equal masks. Defaults to 0.5.

        Returns:
            dict[str, float]: ``AP`` over IoU from 0.5 to 0.95, ``AP50`` and
            ``AP75``, in [0, 1], NaN without instances; at most 100
            predictions of an image.

        Raises:
            ValueError: If ``nms_thr`` is out of range.
        """
        if not 0 <= nms_thr <= 1:
            raise ValueError(f'nms_thr={nms_thr}; allowed are numbers from 0 '
                             'to 1.')
        results = self.results if use_classes else self._best_of_overlapping(
            nms_thr)
        # pycocotools writes into what it is given.
        results = [dict(result) for result in results]
        if not self.truth.getAnnIds(iscrowd=False):
            return dict.fromkeys(('AP', 'AP50', 'AP75'), float('nan'))
        if not results:
            return dict.fromkeys(('AP', 'AP50', 'AP75'), 0.)
        with redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self.truth, self.truth.loadRes(results),
                                  self.iou_type)
            evaluation.params.useCats = int(use_classes)
            evaluation.evaluate()
            evaluation.accumulate()
        # Thresholds, recalls, classes, areas (all first), numbers (100 last).
        precision = evaluation.eval['precision'][..., 0, -1]
        # Classes without instances have -1.
        values = {
            name: part[part > -1]
            for name, part in (('AP', precision), ('AP50', precision[0]),
                               ('AP75', precision[5]))
        }
        return {name: float(value.mean()) for name, value in values.items()}

    def _best_of_overlapping(self, nms_thr: float) -> List[dict]:
        by_image: Dict[Any, List[dict]] = {}
        for result in sorted(self.results, key=lambda r: -r['score']):
            by_image.setdefault(result['image_id'], []).append(result)
        field = 'bbox' if self.iou_type == 'bbox' else 'segmentation'
        kept = []
        for found in by_image.values():
            shapes = [result[field] for result in found]
            ious = np.asarray(
                mask_utils.iou(shapes, shapes, [False] * len(shapes)))
            stays: List[int] = []
            for i in range(len(found)):
                if not (ious[i, stays] > nms_thr).any():
                    stays.append(i)
            kept += [found[i] for i in stays]
        return kept


def check_exhaustive(truth: COCO) -> None:
    """Refuse annotations of which nobody knows what they leave out.

    Args:
        truth (COCO): The annotations.

    Raises:
        ValueError: If images were searched for some classes only, as those
            of LVIS were.
    """
    every = set(truth.getCatIds())
    for number, image in truth.imgs.items():
        if 'neg_category_ids' not in image:
            continue
        searched = {
            a['category_id']
            for a in truth.imgToAnns[number]
        } | set(image['neg_category_ids'])
        if image.get('not_exhaustive_category_ids') or searched != every:
            raise ValueError(
                f'Image {number} was not searched for all classes '
                '(neg_category_ids): which predictions on it are errors '
                'nobody knows.')


def error_report(analysis: ErrorAnalysis,
                 score_thrs: Sequence[float] = (0.5, ),
                 iou_thr: float = 0.5,
                 background_thr: float = 0.1,
                 nms_thr: float = 0.5) -> Tuple[dict, List[str]]:
    """Put all numbers of an analysis together.

    Args:
        analysis (ErrorAnalysis): The analysis.
        score_thrs (Sequence[float]): Thresholds on the scores, for counts.
            Defaults to (0.5, ).
        iou_thr (float): See :meth:`ErrorAnalysis.error_counts`.
        background_thr (float): Likewise.
        nms_thr (float): See :meth:`ErrorAnalysis.average_precision`.

    Returns:
        tuple[dict, list[str]]: The report, of plain numbers with None where
        one is not defined, and its lines as text.
    """
    aps = {
        name: analysis.average_precision(use_classes, nms_thr)
        for name, use_classes in (('with_classes', True), ('without_classes',
                                                           False))
    }
    counts = {
        thr: analysis.error_counts(thr, iou_thr, background_thr)
        for thr in score_thrs
    }
    report = dict(
        iou_type=analysis.iou_type,
        images=len(analysis.truth.getImgIds()),
        settings=dict(
            iou_thr=iou_thr, background_thr=background_thr, nms_thr=nms_thr),
        **{
            name: {k: v if v == v else None
                   for k, v in values.items()}
            for name, values in aps.items()
        },
        errors=[
            dict(score_thr=thr, **found.to_dict())
            for thr, found in counts.items()
        ])
    lines = [
        f'{name.replace("_", " ").capitalize()}: ' +
        ', '.join(f'{key} {value:.3f}' for key, value in values.items())
        for name, values in aps.items()
    ]
    for thr, found in counts.items():
        lines.append(
            f'Above {thr:g}: {found.predictions} predictions: '
            f'{found.right} right, {found.classification} of a wrong class, '
            f'{found.localization} with a poor '
            f'{"mask" if analysis.iou_type == "segm" else "box"}, '
            f'{found.both} with both, {found.duplicate} duplicates, '
            f'{found.background} of background; {found.missed} of '
            f'{found.instances} instances missed')
    return report, lines
