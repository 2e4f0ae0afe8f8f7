# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Stages that correct how sure a teacher is, class by class."""
from abc import abstractmethod
from typing import List, Union

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn

from mmsemi.registry import MODELS, TRANSFORMS
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL, DensePseudoLabel
from .calibration_measures import pixel_weights
from .class_calibrator import ClassCalibrator
from .instance_filters import check_unit_interval
from .outcomes import check_mask_frame, check_outcome, judge_predictions
from .pipeline import PseudoLabelStage


class CalibrationStage(PseudoLabelStage):
    """A stage with a calibrator, which :class:`mmsemi.CalibrationHook` fits.

    Until it is fitted, pseudo-labels pass unchanged. Statistics and maps are
    part of every checkpoint and belong to no teacher, so that no average
    touches them.

    Args:
        calibrator (dict or ClassCalibrator): Its config.

    Raises:
        TypeError: If something else is built.
    """

    def __init__(self, calibrator: Union[dict, ClassCalibrator]) -> None:
        super().__init__()
        if not isinstance(calibrator, nn.Module):
            calibrator = MODELS.build(
                dict(dict(type='mmsemi.ClassCalibrator'), **calibrator))
        if not isinstance(calibrator, ClassCalibrator):
            raise TypeError(
                f'{type(self).__name__}.calibrator is a '
                f'{type(calibrator).__name__}; it must be a '
                'mmsemi.ClassCalibrator.')
        self.calibrator = calibrator

    @abstractmethod
    def observe(self, pseudo_labels: List[BaseDataElement],
                data_samples: List[BaseDataElement]) -> None:
        """Count how often the teacher is right on labelled images.

        Args:
            pseudo_labels (list): What comes to this stage, one per image.
            data_samples (list): With the ground truth, in the same view.

        Raises:
            ValueError: If a sample carries no ground truth.
        """


@TRANSFORMS.register_module()
class CalibrateScores(CalibrationStage):
    """Correct scores and soft labels of instances.

    Before a filter by score, the filter sees corrected scores, so that one
    threshold asks the same precision of every class; behind it, the filter
    sees the teacher's own, as in the paper.

    ``scores`` become the corrected confidence in the class that the teacher
    predicts, ``raw_scores`` keep what they were. ``soft_labels``, where
    there are any, are corrected alike, and ``labels`` become their likeliest
    foreground class, which may be another one.

    F. Porcher et al., Better (pseudo-)labels for semi-supervised instance
    segmentation, 2024 (arXiv 2403.11675) correct the soft labels; whether
    the threshold sees them is not known.

    Args:
        calibrator (dict or ClassCalibrator): Arguments of
            :class:`ClassCalibrator`.
        outcome (str): What counts as right, see
            :meth:`PredictionOutcomes.outcomes`. Defaults to 'match'.
        iou_thr (float): Least IoU with an instance to be right. Defaults to
            0.5.
    """

    requires = ('labels', 'scores')
    writes = ('labels', 'scores', 'raw_scores')

    def __init__(self,
                 calibrator: Union[dict, ClassCalibrator],
                 outcome: str = 'match',
                 iou_thr: float = 0.5) -> None:
        super().__init__(calibrator)
        self.outcome = check_outcome(outcome, 'CalibrateScores.outcome')
        self.iou_thr = check_unit_interval(iou_thr, 'CalibrateScores.iou_thr')

    def forward(self, pseudo_labels: List[InstanceData],
                data_samples: List[BaseDataElement]) -> List[InstanceData]:
        """Correct a batch; see :class:`PseudoLabelStage`."""
        return [self._corrected(label) for label in pseudo_labels]

    def _corrected(self, label: InstanceData) -> InstanceData:
        label = label.new()
        predicted = label.labels
        label.raw_scores = label.scores
        label.scores = self.calibrator.transform(label.scores, predicted)
        if 'soft_labels' in label:
            label.soft_labels = self.calibrator.correct(
                label.soft_labels, predicted)
            foreground = label.soft_labels[:, :self.calibrator.num_classes]
            label.labels = foreground.argmax(1)
        return label

    def observe(self, pseudo_labels: List[InstanceData],
                data_samples: List[BaseDataElement]) -> None:
        """Count predictions and outcomes; see :class:`CalibrationStage`.

        Of federated data, ``neg_category_ids`` and
        ``not_exhaustive_category_ids`` of a sample, as label indices, say
        which classes an image was searched for.
        """
        for label, sample in zip(pseudo_labels, data_samples):
            truth = sample.get('gt_instances')
            if truth is None or 'labels' not in truth:
                raise ValueError(
                    'CalibrateScores measures on images without annotations;'
                    " they need dict(type='LoadAnnotations', with_bbox=True,"
                    ' with_mask=True) in their pipeline.')
            if 'img_shape' in sample:
                # In another frame nothing would overlap, without a word.
                check_mask_frame(truth, sample.img_shape,
                                 str(sample.get('img_path', 'an image')))
            judged = judge_predictions(
                label,
                truth,
                sample.get('ignored_instances'),
                self.iou_thr,
                negative_labels=sample.get('neg_category_ids'),
                not_exhaustive_labels=sample.get(
                    'not_exhaustive_category_ids', ()))
            outcomes, counted = judged.outcomes(self.outcome)
            self.calibrator.update(label.scores[counted],
                                   label.labels[counted], outcomes[counted])


@TRANSFORMS.register_module()
class CalibratePixels(CalibrationStage):
    """Correct confidence and probabilities of every pixel.

    Labels become the likeliest class of the corrected probabilities.

    Neighbouring pixels are right or wrong together, so an image counts for
    at most ``per_class`` predictions of a class, however large it is; what
    the right number is nobody knows.

    Args:
        calibrator (dict or ClassCalibrator): Arguments of
            :class:`ClassCalibrator`; every class of the label map counts.
        per_class (float): Above 0. Defaults to 20.
    """

    requires = ('label', 'confidence', 'valid', 'prob')
    writes = ('label', 'confidence', 'prob')

    def __init__(self,
                 calibrator: Union[dict, ClassCalibrator],
                 per_class: float = 20.) -> None:
        super().__init__(calibrator)
        if not per_class > 0:
            raise ValueError(f'CalibratePixels.per_class={per_class!r}; '
                             'allowed are numbers above 0.')
        self.per_class = float(per_class)

    def forward(self, pseudo_labels: List[DensePseudoLabel],
                data_samples: List[BaseDataElement]
                ) -> List[DensePseudoLabel]:
        """Correct a batch; see :class:`PseudoLabelStage`."""
        return [self._corrected(label) for label in pseudo_labels]

    def _corrected(self, label: DensePseudoLabel) -> DensePseudoLabel:
        known = label.label != IGNORE_LABEL
        prob = self.calibrator.correct(
            label.prob.movedim(0, -1), label.label.where(known, 0))
        confidence, predicted = prob.max(-1)
        label = label.new()
        label.prob = prob.movedim(-1, 0)
        label.confidence = confidence.where(known, label.confidence)
        label.label = predicted.where(known, label.label)
        return label

    def observe(self, pseudo_labels: List[DensePseudoLabel],
                data_samples: List[BaseDataElement]) -> None:
        """Count pixels and outcomes; see :class:`CalibrationStage`."""
        for label, sample in zip(pseudo_labels, data_samples):
            if 'gt_sem_seg' not in sample:
                raise ValueError(
                    'CalibratePixels measures on images without label maps; '
                    "they need dict(type='LoadAnnotations') in their "
                    'pipeline.')
            truth = sample.gt_sem_seg.data.squeeze(0).to(label.label)
            if truth.shape != label.label.shape:
                # Padding is not annotated.
                canvas = torch.full_like(label.label, IGNORE_LABEL)
                canvas[:truth.shape[0], :truth.shape[1]] = truth
                truth = canvas
            known = label.valid & (truth != IGNORE_LABEL) & (
                label.label != IGNORE_LABEL)
            predicted = label.label[known]
            self.calibrator.update(
                label.confidence[known], predicted, predicted == truth[known],
                pixel_weights(predicted, self.per_class))
