# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Columns of a training panel: the object that a sentence refers to."""
from typing import List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor

from mmsemi.methods import SemiSemanticSegmentor
from mmsemi.models.dense_forward import dense_logits
from mmsemi.models.view_images import view_images
from mmsemi.pseudo_labels import (RefineByProposals, select_proposals,
                                  stage_samples)
from mmsemi.pseudo_labels.class_pieces import piece_masks
from mmsemi.pseudo_labels.stage_samples import PROPOSALS
from mmsemi.structures.dense_pseudo_label import DensePseudoLabel
from mmsemi.structures.view_geometry import masks_to_boxes
from .drawing import (default_palette, draw_instances, draw_label_map,
                      resize_image)

Column = Tuple[str, np.ndarray]


class Refinement(NamedTuple):
    """What a pipeline made of the pseudo-label of one image.

    Attributes:
        before: What came to the stage that refines; without one, what the
            teacher said.
        refined: What this stage made of it, None without one.
        after: What the student learns from.
        chosen: (N, H, W) bool, the proposals that became the refined mask,
            none without a match.
        num_proposals: How many there were.
    """
    before: DensePseudoLabel
    refined: Optional[DensePseudoLabel]
    after: DensePseudoLabel
    chosen: Tensor
    num_proposals: int


@torch.no_grad()
def trace_refinement(model: SemiSemanticSegmentor, inputs: Tensor,
                     data_samples: list) -> List[Refinement]:
    """Label weak views and keep what was before and after the refinement.

    Args:
        model (SemiSemanticSegmentor): Its pipeline may have a stage
            :class:`RefineByProposals`; of several the first counts.
        inputs (Tensor): Weak views (N, 3, H, W), preprocessed.
        data_samples (list): Their samples, with ``mask_proposals``.

    Returns:
        list[Refinement]: Of the N images.
    """
    pipeline = model.pseudo_label_pipeline
    images = None
    if pipeline.needs_image:
        images = view_images(inputs, model.data_preprocessor)
    samples = stage_samples(data_samples, inputs.shape[2:], images)
    labels = model.predict_unfiltered(inputs, data_samples)
    step = max(model.steps_since_burn_in, 0)
    after = pipeline(labels, samples, step)
    stage = next(
        (s for s in pipeline.stages if isinstance(s, RefineByProposals)), None)
    if stage is None:
        nothing = inputs.new_zeros((0, *inputs.shape[2:]), dtype=torch.bool)
        return [
            Refinement(label, None, last, nothing, 0)
            for label, last in zip(labels, after)
        ]
    before = pipeline(labels, samples, step, end=stage)
    refined = stage(before, samples)
    return [
        Refinement(*parts, *_chosen(stage, parts[0], parts[1], sample))
        for *parts, sample in zip(before, refined, after, samples)
    ]


def _chosen(stage: RefineByProposals, before: DensePseudoLabel,
            refined: DensePseudoLabel, sample) -> Tuple[Tensor, int]:
    """Return the proposals that were united, and how many there were."""
    proposals = sample.get(PROPOSALS).to(before.label.device)
    pieces, classes = stage.pieces(before.label.where(before.valid, 255))
    matching = {
        name: value
        for name, value in stage.matching.items()
        if name not in ('min_coverage', 'min_iou')
    }
    selected = torch.zeros(
        len(proposals), dtype=torch.bool, device=pieces.device)
    for part in torch.arange(len(classes)).split(16):
        selected |= select_proposals(
            piece_masks(pieces, part), proposals, **matching).any(0)
    # A guard may have refused what was selected.
    selected &= refined.matched.any()
    return proposals.to_bool()[selected], len(proposals)


def referring_columns(model: SemiSemanticSegmentor, weak: Tensor,
                      strong: Tensor, weak_samples: list,
                      strong_samples: list, images: Sequence[tuple],
                      scales: Sequence[tuple], classes, palette,
                      score_thr: float) -> List[List[Column]]:
    """Draw masks before and after their refinement, weights, predictions.

    Args and returns as :func:`instance_columns`, with more columns for what
    the teacher says: its mask and, if the pipeline has a stage
    :class:`RefineByProposals`, the proposals chosen and the refined mask;
    last the weights, from dark blue (0) to yellow (the largest).
    ``classes`` and ``score_thr`` are not used.
    """
    traced = trace_refinement(model, weak, weak_samples)
    logits = dense_logits(model.student, strong, strong_samples)
    palette = palette or default_palette(logits.shape[1])
    columns = []
    for trace, predicted, image, scale in zip(traced, logits.argmax(1), images,
                                              scales):
        drawn = _taught(trace, image[0], palette, scale[0])
        height, width = image[1].shape[:2]
        drawn.append(("student's prediction",
                      draw_label_map(
                          image[1],
                          predicted[:height, :width],
                          palette,
                          scale=scale[1])))
        columns.append(drawn)
    return columns


def _taught(trace: Refinement, image: np.ndarray, palette,
            scale: float) -> List[Column]:
    height, width = image.shape[:2]

    def mask(label: DensePseudoLabel) -> np.ndarray:
        return draw_label_map(
            image, label.label[:height, :width], palette, scale=scale)

    columns = [("teacher's mask", mask(trace.before))]
    if trace.refined is not None:
        count = len(trace.chosen)
        columns += [(f'{count} of {trace.num_proposals} proposals',
                     _proposals(image, trace.chosen[:, :height, :width],
                                scale)),
                    ('refined mask' if count else 'no proposal fits',
                     mask(trace.refined))]
    weight = trace.after.weight[:height, :width].float()
    low, high = float(weight.min()), float(weight.max())
    scaled = (255 * weight / max(high, 1e-6)).round().byte().cpu().numpy()
    heat = cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    columns.append((f'weights {low:.2f} - {high:.2f}',
                    resize_image(np.ascontiguousarray(heat), scale)))
    return columns


def _proposals(image: np.ndarray, masks: Tensor, scale: float) -> np.ndarray:
    count = len(masks)
    found = InstanceData(
        labels=torch.arange(count), masks=masks, bboxes=masks_to_boxes(masks))
    return draw_instances(
        image, found, palette=default_palette(max(count, 1)), scale=scale)
