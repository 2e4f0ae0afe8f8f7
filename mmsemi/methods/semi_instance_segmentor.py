# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Semi-supervised instance segmentation around any mmdet segmenter."""
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmsemi.models.dense_heads import QueryFusionHead
from mmsemi.models.view_images import view_images
from mmsemi.pseudo_labels import (PseudoLabelPipeline, PseudoLabelQuality,
                                  measure_pseudo_labels, stage_samples)
from mmsemi.registry import MODELS
from mmsemi.structures.view_geometry import (compose_view_matrix,
                                             is_axis_aligned, is_identity,
                                             masks_to_boxes, warp_boxes,
                                             warp_masks)
from .instance_views import fit_canvas, pseudo_sample, view_frame, view_matrix
from .soft_label_emission import (check_soft_label_heads, emitting_soft_labels,
                                  soft_label_modules)
from .teacher_student import TeacherStudent


@MODELS.register_module()
class SemiInstanceSegmentor(TeacherStudent):
    """Teacher-student training of an mmdet instance segmenter or detector.

    The teacher's instances pass the pseudo-label pipeline, move once from
    its view into the student's (masks are warped, boxes follow) and serve as
    ground truth for the segmenter's own loss.

    Args:
        segmentor (dict or str): The mmdet model; see
            :class:`TeacherStudent`.
        pseudo_label_pipeline (Sequence[dict], optional): Stages between
            teacher and student; see :mod:`mmsemi.pseudo_labels`. Defaults
            to None: ``FilterByScore(score_thr=0.5)``.
        min_box_size (tuple[float, float]): Pseudo-instances whose box is not
            wider and higher than this, in pixels of the student's view, are
            dropped. Defaults to (0.01, 0.01), as in mmdet.
        keep_empty_images (bool): Whether images without pseudo-instances
            take part as pure background. Defaults to True, as in mmdet.
        hidden_label_interval (int): Every so many optimizer steps, measure
            the pseudo-labels against annotations of the unlabelled images,
            which are used for nothing else. 0 means never; then annotations
            need not exist. Defaults to 0.
        soft_labels (bool): Whether the student learns the teacher's
            probabilities of all classes (the pseudo-labels' field
            ``soft_labels``) instead of the class alone. Needs heads that
            give and learn them. Stages of the pipeline get to see them in
            either case, where the heads give them. Defaults to False.
        **kwargs: Arguments of :class:`TeacherStudent`.

    Raises:
        ValueError: If ``soft_labels`` is asked of heads that do not give
            or not learn them.
    """

    def __init__(self,
                 segmentor: Union[dict, str],
                 pseudo_label_pipeline: Optional[Sequence[dict]] = None,
                 min_box_size: Tuple[float, float] = (1e-2, 1e-2),
                 keep_empty_images: bool = True,
                 hidden_label_interval: int = 0,
                 soft_labels: bool = False,
                 **kwargs) -> None:
        super().__init__(segmentor, **kwargs)
        if pseudo_label_pipeline is None:
            pseudo_label_pipeline = [
                dict(type='mmsemi.FilterByScore', score_thr=0.5)
            ]
        if hidden_label_interval < 0:
            raise ValueError(f'hidden_label_interval={hidden_label_interval};'
                             ' allowed are whole numbers from 0.')
        fields = ['bboxes', 'labels', 'scores']
        if self.predicts_masks:
            fields.append('masks')
        fusion_head = getattr(self.labeler, 'panoptic_fusion_head', None)
        if self._mask_threshold_owner() is not None or isinstance(
                fusion_head, QueryFusionHead):
            fields.append('mask_scores')
        if soft_labels:
            check_soft_label_heads(self.labeler)
        if soft_label_modules(self.labeler):
            fields.append('soft_labels')
        self.soft_labels = soft_labels
        self.pseudo_label_pipeline = PseudoLabelPipeline(
            pseudo_label_pipeline, fields)
        self.min_box_size = tuple(min_box_size)
        self.keep_empty_images = keep_empty_images
        self.hidden_label_interval = hidden_label_interval

    @classmethod
    def check_segmentor(cls, config: dict) -> None:
        """Refuse query-based models that would not output instances."""
        if 'panoptic_fusion_head' not in config:
            return
        test_cfg = config.get('test_cfg') or {}
        if not test_cfg.get('instance_on', False):
            raise ValueError(
                f"segmentor of type {config['type']} predicts no instances: "
                'set segmentor.test_cfg.instance_on=True (and panoptic_on='
                'False, unless you need it).')

    @classmethod
    def check_student(cls, student: nn.Module) -> None:
        """Refuse a model that gives every pixel a class."""
        if hasattr(student, 'decode_head'):
            raise ValueError(
                f'segmentor of type {type(student).__name__} predicts label '
                'maps, no instances; use a semantic method such as '
                'mmsemi.FixMatch.')

    @property
    def predicts_masks(self) -> bool:
        """bool: Whether the segmenter has a mask branch of any kind."""
        dense_head = getattr(self.labeler, 'bbox_head', None)
        return bool(
            getattr(self.labeler, 'with_mask', False)
            or hasattr(self.labeler, 'mask_head')
            or hasattr(self.labeler, 'panoptic_head')
            or hasattr(dense_head, 'mask_head'))

    # From teacher to pseudo-labels ----------------------------------------

    @contextmanager
    def labeling(self) -> Iterator[nn.Module]:
        """Let who labels evaluate and give soft labels.

        Yields:
            nn.Module: :attr:`labeler`.
        """
        with super().labeling() as labeler, emitting_soft_labels(labeler):
            yield labeler

    @torch.no_grad()
    def label_unlabeled(
            self, inputs: Tensor,
            data_samples: List[DetDataSample]) -> List[InstanceData]:
        """Let the teacher label its views.

        Args:
            inputs (Tensor): Weak views (N, C, H, W), preprocessed.
            data_samples (list[DetDataSample]): Their data samples; ground
                truth in them is not looked at.

        Returns:
            list[InstanceData]: N pseudo-labels that passed the pipeline, in
            pixels of the teacher's view: ``bboxes`` (M, 4) float32,
            ``labels`` (M,) int64, ``scores`` (M,) float32 and, with a mask
            branch, ``masks`` (M, h, w) bool of the unpadded view. Where
            the heads give them also ``soft_labels`` (M, C + 1) and
            ``mask_scores`` (M,), both float32.
        """
        predicted = self.predict_unfiltered(inputs, data_samples)
        for label in predicted:
            label.set_metainfo(dict(num_predicted=len(label)))
        images = None
        if self.pseudo_label_pipeline.needs_image:
            images = view_images(inputs, self.data_preprocessor)
        return self.pseudo_label_pipeline(
            predicted, stage_samples(data_samples, images=images))

    @torch.no_grad()
    def predict_unfiltered(
            self, inputs: Tensor,
            data_samples: List[DetDataSample]) -> List[InstanceData]:
        """Return what the teacher sees, before any stage.

        Args and returns as :meth:`label_unlabeled`.
        """
        with self._soft_masks() as soft, self.labeling() as labeler:
            results = labeler.predict(
                inputs, [view_frame(s) for s in data_samples], rescale=False)
        return [
            self._to_pseudo_label(result, sample.img_shape[:2], soft)
            for result, sample in zip(results, data_samples)
        ]

    def _to_pseudo_label(self, result: DetDataSample, shape: Tuple[int, int],
                         mask_threshold: Optional[float]) -> InstanceData:
        if 'pred_instances' not in result:
            raise RuntimeError(
                f'{type(self.labeler).__name__} predicted no '
                '`pred_instances`; set its test_cfg so that it outputs '
                'instances.')
        found = result.pred_instances
        label = InstanceData(
            bboxes=found.bboxes.float(),
            labels=found.labels.long(),
            scores=found.scores.float())
        for field in ('soft_labels', 'mask_scores'):
            if field in found:
                label.set_field(found.get(field).float(), field)
        if 'masks' not in found:
            return label
        masks = fit_canvas(found.masks, shape)
        if mask_threshold is not None:
            # Bytes, not floats: there may be a hundred masks of full size.
            soft = masks
            masks = soft >= mask_threshold * 255
            inside = (soft * masks).flatten(1).sum(1, dtype=torch.float32)
            area = masks.flatten(1).sum(1).clamp(min=1)
            label.mask_scores = inside / 255 / area
        label.masks = masks.bool()
        # Box-free heads leave zeros for boxes.
        missing = (label.bboxes[:, 2:] <= label.bboxes[:, :2]).any(1)
        if len(label) and bool(missing.any()):
            label.bboxes[missing] = masks_to_boxes(
                label.masks[missing]).to(label.bboxes)
        return label

    def _mask_threshold_owner(self) -> Optional[dict]:
        roi_head = getattr(self.labeler, 'roi_head', None)
        test_cfg = getattr(roi_head, 'test_cfg', None)
        if test_cfg is not None and getattr(roi_head, 'with_mask', False) \
                and 'mask_thr_binary' in test_cfg:
            return test_cfg
        return None

    @contextmanager
    def _soft_masks(self):
        """Make RoI heads return probabilities if a stage needs them."""
        test_cfg = self._mask_threshold_owner()
        if test_cfg is None or not self.pseudo_label_pipeline.needs(
                'mask_scores'):
            yield None
            return
        threshold = test_cfg.mask_thr_binary
        test_cfg.mask_thr_binary = -1
        try:
            yield threshold
        finally:
            test_cfg.mask_thr_binary = threshold

    # From pseudo-labels to the student's loss -----------------------------

    @torch.no_grad()
    def project(self, pseudo_labels: List[InstanceData],
                teacher_samples: List[DetDataSample],
                student_samples: List[DetDataSample]) -> List[InstanceData]:
        """Move pseudo-labels from the teacher's view into the student's.

        Masks are resampled once. Boxes are moved by the matrix where scale,
        flip and shift relate the views, and taken from the warped masks
        otherwise, because the hull of a rotated box is too large.

        Args:
            pseudo_labels (list[InstanceData]): In the teacher's views.
            teacher_samples (list[DetDataSample]): With
                ``homography_matrix``.
            student_samples (list[DetDataSample]): With
                ``homography_matrix`` and ``img_shape``.

        Returns:
            list[InstanceData]: In the unpadded student's views; instances
            that left the view are gone.
        """
        return [
            self._project_one(label, view_matrix(teacher),
                              view_matrix(student), teacher.img_shape[:2],
                              student.img_shape[:2]) for label, teacher,
            student in zip(pseudo_labels, teacher_samples, student_samples)
        ]

    def _project_one(self, label: InstanceData, teacher_matrix: Tensor,
                     student_matrix: Tensor, teacher_shape: Tuple[int, int],
                     student_shape: Tuple[int, int]) -> InstanceData:
        matrix = compose_view_matrix(teacher_matrix, student_matrix)
        label = label.new()
        same_view = is_identity(matrix) and tuple(teacher_shape) == tuple(
            student_shape)
        if not same_view:
            bboxes = warp_boxes(label.bboxes, matrix, student_shape)
            if 'masks' in label:
                masks = warp_masks(label.masks, matrix, student_shape)
                if not is_axis_aligned(matrix):
                    bboxes = masks_to_boxes(masks).to(bboxes)
                label.masks = masks
            label.bboxes = bboxes
        size = label.bboxes[:, 2:] - label.bboxes[:, :2]
        kept = (size[:, 0] > self.min_box_size[0]) & (
            size[:, 1] > self.min_box_size[1])
        if 'masks' in label:
            kept &= label.masks.flatten(1).any(1)
        return label[kept]

    def loss_by_pseudo_labels(
            self, inputs: Dict[str, Tensor],
            data_samples: Dict[str, List[DetDataSample]],
            pseudo_labels: List[InstanceData]
    ) -> Tuple[Dict[str, Tensor], float]:
        """Compute the student's loss; see :class:`TeacherStudent`.

        The student runs exactly once whatever was kept, so that processes
        that share batch statistics or gradients never wait for each other.
        Images that are left out count as zero in the mean over the batch, as
        in FixMatch (K. Sohn et al., NeurIPS 2020, equation 4): the factor is
        the share of images used.
        """
        images = inputs['unsup_student']
        students = data_samples['unsup_student']
        projected = self.project(pseudo_labels, data_samples['unsup_teacher'],
                                 students)
        for label in projected:
            self._choose_labels(label)
        used = [
            i for i, label in enumerate(projected)
            if label.get('usable', True) and (
                self.keep_empty_images or len(label) > 0)
        ]
        factor = len(used) / len(projected)
        if not any(len(projected[i]) > 0 for i in used):
            factor = 0.
            used = list(range(len(projected)))
        samples = [pseudo_sample(students[i], projected[i]) for i in used]
        if len(used) < len(images):
            images = images[used]
        return self.student.loss(images, samples), factor

    def _choose_labels(self, label: InstanceData) -> None:
        if not self.soft_labels:
            label.pop('soft_labels', None)
        elif 'soft_labels' not in label:
            raise RuntimeError(
                'soft_labels=True, but the pseudo-labels carry none: either '
                f'{type(self.labeler).__name__} did not give them, or a '
                'stage of pseudo_label_pipeline lost them.')

    # Figures on the pseudo-labels -----------------------------------------

    def pseudo_label_figures(
            self, pseudo_labels: List[InstanceData],
            teacher_samples: List[DetDataSample]) -> Dict[str, Tensor]:
        """Describe a batch of pseudo-labels.

        Args:
            pseudo_labels (list[InstanceData]): What passed the pipeline.
            teacher_samples (list[DetDataSample]): Samples of the teacher's
                views, with hidden annotations where they exist.

        Returns:
            dict[str, Tensor]: Scalars. ``pseudo/per_image``: mean number;
            ``pseudo/kept_share``: kept of what the teacher predicted;
            ``pseudo/used_images``: share of images in the loss;
            ``pseudo/mean_score``: mean score of the kept, if any. At the
            hidden-label interval also ``pseudo/precision``,
            ``pseudo/recall`` and ``pseudo/iou``, each where defined. Stages
            may add theirs.
        """
        used = [label for label in pseudo_labels if label.get('usable', True)]
        kept = sum(len(label) for label in used)
        predicted = sum(label.num_predicted for label in pseudo_labels)
        figures = {
            'per_image': kept / len(pseudo_labels),
            'kept_share': kept / max(predicted, 1),
            'used_images': len(used) / len(pseudo_labels)
        }
        for name, value in self.pseudo_label_pipeline.figures.items():
            figures[name] = float(value)
        if kept:
            figures['mean_score'] = float(
                torch.cat([label.scores for label in used]).mean())
        interval = self.hidden_label_interval
        if interval and int(self.step) % interval == 0:
            quality = PseudoLabelQuality()
            for label, sample in zip(pseudo_labels, teacher_samples):
                if label.get('usable', True):
                    quality += measure_pseudo_labels(
                        label, sample.gt_instances,
                        sample.get('ignored_instances'))
            figures.update(
                precision=quality.precision,
                recall=quality.recall,
                iou=quality.iou)
        # Left on the host, where the log reads them.
        return {
            f'pseudo/{name}': torch.tensor(value)
            for name, value in figures.items() if value == value
        }
