# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Semi-supervised semantic segmentation around any mmseg EncoderDecoder."""
from abc import abstractmethod
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmsemi.models.dense_forward import (check_dense_segmentor,
                                         check_reads_no_text, dense_logits,
                                         reads_text)
from mmsemi.models.dense_prediction import predict_dense
from mmsemi.models.view_images import view_images
from mmsemi.pseudo_labels import PseudoLabelPipeline, stage_samples
from mmsemi.structures.dense_pseudo_label import (IGNORE_LABEL,
                                                  DensePseudoLabel,
                                                  DenseTargets, valid_pixels)
from .dense_views import (PARTNER_VIEWS, apply_mix, build_mix,
                          check_same_geometry, has_partners, hidden_labels)
from .teacher_student import TeacherStudent


class SemiSemanticSegmentor(TeacherStudent):
    """Teacher-student training of an mmseg semantic segmenter.

    The teacher's map of the weak view passes the pseudo-label pipeline, is
    mixed together with the student's view, and a method computes its loss
    (:meth:`unlabeled_loss`). Weak and strong views must share their
    geometry. Padding is known from the data samples, so unlabelled images
    need no mask files.

    Partners of mixing come from the batch. If it has the views
    'unsup_partner_teacher' and 'unsup_partner_student', as many as
    unlabelled images, partners are these: a third source of the data, in an
    order of its own, or in the order of the second
    (``MultiSourceSampler.tied_sources``), as in the released code of CPS and
    UniMatch V1, where the partner is another crop of the same image.

    Args:
        segmentor (dict or str): The mmseg model; see
            :class:`TeacherStudent`.
        pseudo_label_pipeline (Sequence[dict]): Stages between teacher and
            student; see :mod:`mmsemi.pseudo_labels`. Defaults to none.
        mix (dict, optional): What mixes the student's views, such as
            ``dict(type='mmsemi.CutMix')``. Defaults to None: nothing.
        label_in_train_mode (bool): With ``teacher.mode='student'``: whether
            the student labels with the batch's statistics, as in the
            released code of CPS and UniMatch V1. Defaults to False.
        hidden_label_interval (int): Every so many optimizer steps, measure
            the pseudo-labels against masks of the unlabelled images, which
            are used for nothing else. 0 means never; then masks need not
            exist. Defaults to 0.
        **kwargs: Arguments of :class:`TeacherStudent`.

    Raises:
        ValueError: If an argument is out of range, the segmenter gives no
            logits of every pixel, or it reads sentences that the method or
            ``mix`` cannot follow.
    """

    needs_prob = False
    """Whether the method's loss reads ``prob`` of the targets."""

    passes_text = True
    """Whether sentences reach the segmenter, so that it may be referring."""

    def __init__(self,
                 segmentor: Union[dict, str],
                 pseudo_label_pipeline: Sequence[dict] = (),
                 mix: Optional[dict] = None,
                 label_in_train_mode: bool = False,
                 hidden_label_interval: int = 0,
                 **kwargs) -> None:
        super().__init__(segmentor, **kwargs)
        if label_in_train_mode and self.teacher is not None:
            raise ValueError(
                'label_in_train_mode=True needs teacher.mode=\'student\', '
                f'got {self.teacher_settings.mode!r}: a teacher always '
                'evaluates.')
        if hidden_label_interval < 0:
            raise ValueError(f'hidden_label_interval={hidden_label_interval};'
                             ' allowed are whole numbers from 0.')
        self.pseudo_label_pipeline = PseudoLabelPipeline(
            pseudo_label_pipeline,
            ('label', 'confidence', 'weight', 'valid', 'prob'))
        if mix is not None and reads_text(self.student):
            raise ValueError(
                f'mix={mix!r}, but segmentor of type '
                f'{type(self.student).__name__} reads one sentence per image,'
                ' which does not speak of what another image brings. Set '
                'mix=None.')
        self.mix = build_mix(mix)
        self.label_in_train_mode = label_in_train_mode
        self.hidden_label_interval = hidden_label_interval

    @classmethod
    def check_student(cls, student: nn.Module) -> None:
        """Refuse a model without logits of every pixel."""
        check_dense_segmentor(student)
        if not cls.passes_text:
            check_reads_no_text(student, f'mmsemi.{cls.__name__}')

    # From teacher to pseudo-labels ----------------------------------------

    @torch.no_grad()
    def label_unlabeled(
            self, inputs: Tensor,
            data_samples: List[SegDataSample]) -> List[DensePseudoLabel]:
        """Label weak views.

        Args:
            inputs (Tensor): Weak views (N, C, H, W), preprocessed.
            data_samples (list[SegDataSample]): Their data samples; ground
                truth in them is not looked at.

        Returns:
            list[DensePseudoLabel]: N pseudo-labels that passed the pipeline.
        """
        if self.label_in_train_mode and self.training:
            logits = dense_logits(self.student, inputs, data_samples)
        else:
            with self.labeling() as labeler:
                logits = dense_logits(labeler, inputs, data_samples)
        return self.pseudo_labels_of(logits, data_samples, inputs)

    @torch.no_grad()
    def pseudo_labels_of(self, logits: Tensor,
                         data_samples: List[SegDataSample],
                         inputs: Tensor) -> List[DensePseudoLabel]:
        """Turn logits of weak views into pseudo-labels.

        Args:
            logits (Tensor): (N, K, H, W).
            data_samples (list[SegDataSample]): Samples of the weak views.
            inputs (Tensor): The weak views (N, C, H, W), preprocessed, for
                stages that look at them.

        Returns:
            list[DensePseudoLabel]: What passed the pipeline.
        """
        images = None
        if self.pseudo_label_pipeline.needs_image:
            images = view_images(inputs, self.data_preprocessor)
        bare = stage_samples(data_samples, logits.shape[2:], images)
        step = int(self.step) - self.teacher_settings.burn_in_steps
        return self.pseudo_label_pipeline(
            self._unfiltered(logits, data_samples), bare, max(step, 0))

    @torch.no_grad()
    def predict_unfiltered(
            self, inputs: Tensor,
            data_samples: List[SegDataSample]) -> List[DensePseudoLabel]:
        """Return what who labels sees when evaluating, before any stage.

        Args and returns as :meth:`label_unlabeled`.
        """
        with self.labeling() as labeler:
            logits = dense_logits(labeler, inputs, data_samples)
        return self._unfiltered(logits, data_samples)

    def _unfiltered(
            self, logits: Tensor,
            data_samples: List[SegDataSample]) -> List[DensePseudoLabel]:
        with_prob = self.needs_prob or self.pseudo_label_pipeline.needs('prob')
        valid = valid_pixels(data_samples, logits.shape[2:], logits.device)
        return DenseTargets.from_logits(logits, valid, with_prob).unbind()

    # From pseudo-labels to the student's loss -----------------------------

    def loss_by_pseudo_labels(
        self, inputs: Dict[str, Tensor], data_samples: Dict[str, list],
        pseudo_labels: List[DensePseudoLabel]
    ) -> Tuple[Dict[str, Tensor], float]:
        """Compute the student's loss; see :class:`TeacherStudent`."""
        targets = DenseTargets.from_pseudo_labels(pseudo_labels)
        images, targets = self.mixed(inputs, data_samples, targets)
        logits = dense_logits(self.student, images,
                              data_samples['unsup_student'])
        return self.unlabeled_loss(logits, targets), 1.

    @abstractmethod
    def unlabeled_loss(self, logits: Tensor,
                       targets: DenseTargets) -> Dict[str, Tensor]:
        """Compute the loss of the student's logits.

        Args:
            logits (Tensor): (N, K, H, W), with gradient.
            targets (DenseTargets): What the teacher says, mixed like the
                images.

        Returns:
            dict[str, Tensor]: Losses by name.
        """

    @torch.no_grad()
    def mixed(self,
              inputs: Dict[str, Tensor],
              data_samples: Dict[str, list],
              targets: DenseTargets,
              view: str = 'unsup_student',
              others: Optional[DenseTargets] = None
              ) -> Tuple[Tensor, DenseTargets]:
        """Mix a strong view and its targets.

        Args:
            inputs (dict[str, Tensor]): All views of the batch.
            data_samples (dict[str, list]): Their data samples.
            targets (DenseTargets): In the weak view.
            view (str): Defaults to 'unsup_student'.
            others (DenseTargets, optional): From :meth:`partner_targets`, to
                label partners once for several views. Defaults to None:
                labelled here if there are partners.

        Returns:
            tuple[Tensor, DenseTargets]: Images (N, 3, H, W) and targets.

        Raises:
            ValueError: If the view does not share the weak view's geometry.
        """
        check_same_geometry(inputs, data_samples, view)
        images = inputs[view]
        if self.mix is None:
            return images, targets
        if others is None:
            others = self.partner_targets(inputs, data_samples)
        if others is None:
            plan = self.mix.plan(targets)
            return apply_mix(plan, images, targets)
        partner = torch.arange(len(images), device=images.device)
        plan = self.mix.plan(targets, partner)
        return apply_mix(plan, images, targets, inputs[PARTNER_VIEWS[1]],
                         others)

    def partner_targets(
            self, inputs: Dict[str, Tensor],
            data_samples: Dict[str, list]) -> Optional[DenseTargets]:
        """Label the partners of mixing that the data bring.

        Args:
            inputs (dict[str, Tensor]): All views of the batch.
            data_samples (dict[str, list]): Their data samples.

        Returns:
            DenseTargets or None: None if partners come from the batch, or
            nothing is mixed.

        Raises:
            ValueError: If the partners' views differ in their geometry, or
                from the unlabelled images in their size.
        """
        if self.mix is None or not has_partners(inputs, PARTNER_VIEWS):
            return None
        weak, strong = PARTNER_VIEWS
        if inputs[weak].shape != inputs['unsup_teacher'].shape:
            raise ValueError(
                f'The view {weak!r} has the shape '
                f'{tuple(inputs[weak].shape)}, but unlabelled images have '
                f'{tuple(inputs["unsup_teacher"].shape)}; crop and pad both '
                'to one size.')
        # The check compares with the weak view of the unlabelled images.
        check_same_geometry(
            dict(inputs, unsup_teacher=inputs[weak]),
            dict(data_samples, unsup_teacher=data_samples[weak]), strong)
        return DenseTargets.from_pseudo_labels(
            self.label_unlabeled(inputs[weak], data_samples[weak]))

    # Figures and prediction -----------------------------------------------

    @torch.no_grad()
    def pseudo_label_figures(
            self, pseudo_labels: List[DensePseudoLabel],
            teacher_samples: List[SegDataSample]) -> Dict[str, Tensor]:
        """Describe a batch of pseudo-labels.

        Args:
            pseudo_labels (list[DensePseudoLabel]): What passed the pipeline.
            teacher_samples (list[SegDataSample]): Samples of the teacher's
                views, with hidden masks where they exist.

        Returns:
            dict[str, Tensor]: Scalars. ``pseudo/kept_share``: share of the
            pixels that is learned from; ``pseudo/mean_confidence`` of all
            pixels. At the hidden-label interval also ``pseudo/accuracy`` of
            the kept pixels, if any. Stages may add theirs.
        """
        targets = DenseTargets.from_pseudo_labels(pseudo_labels)
        num_valid = targets.valid.sum().clamp(min=1)
        kept = (targets.weight > 0) & targets.valid
        confidence = targets.confidence.where(targets.valid, 0.)
        figures = {
            'pseudo/kept_share': kept.sum() / num_valid,
            'pseudo/mean_confidence': confidence.sum() / num_valid
        }
        for name, value in self.pseudo_label_pipeline.figures.items():
            figures[f'pseudo/{name}'] = value
        interval = self.hidden_label_interval
        if interval and int(self.step) % interval == 0:
            hidden = hidden_labels(teacher_samples).to(targets.label)
            known = kept & (hidden != IGNORE_LABEL)
            if bool(known.any()):
                right = (targets.label == hidden) & known
                figures['pseudo/accuracy'] = right.sum() / known.sum()
        return figures

    def predict(self, inputs: Tensor,
                data_samples: List[SegDataSample]) -> List[SegDataSample]:
        """Predict label maps; see :func:`predict_dense`."""
        return predict_dense(self.predictor, inputs, data_samples)
