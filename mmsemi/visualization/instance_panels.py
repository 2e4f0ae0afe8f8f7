# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Columns of a training panel: instances."""
from typing import List, Sequence

from mmengine.structures import InstanceData
from torch import Tensor

from mmsemi.methods import SemiInstanceSegmentor
from mmsemi.methods.semi_instance_segmentor import fit_canvas, view_frame
from .drawing import draw_instances


def instance_columns(model: SemiInstanceSegmentor, weak: Tensor,
                     strong: Tensor, weak_samples: list, strong_samples: list,
                     images: Sequence[tuple], scales: Sequence[tuple], classes,
                     palette, score_thr: float) -> List[list]:
    """Draw pseudo-instances and predictions.

    Args:
        model (SemiInstanceSegmentor): The model, evaluating.
        weak (Tensor): Weak views (N, 3, H, W).
        strong (Tensor): Strong views (N, 3, H, W).
        weak_samples (list): Samples of the weak views.
        strong_samples (list): Samples of the strong views.
        images (Sequence[tuple]): Weak and strong view of each image, (H, W,
            3) uint8, RGB.
        scales (Sequence[tuple]): Factors on their sizes.
        classes (Sequence[str] or None): Names of the classes.
        palette (Sequence[tuple] or None): Colours of the classes.
        score_thr (float): The student's instances are drawn from this score
            on.

    Returns:
        list[list]: For each image title and picture of the teacher's answer,
        and of the student's.
    """
    pseudo_labels = model.label_unlabeled(weak, weak_samples)
    predictions = _student_instances(model, strong, strong_samples)
    columns = []
    for label, prediction, image, scale in zip(pseudo_labels, predictions,
                                               images, scales):
        title = f"teacher's pseudo-labels ({len(label)})"
        if not label.get('usable', True):
            title = f"teacher's ({len(label)}), image left out"
        taught = draw_instances(
            image[0], label, classes, palette, scale=scale[0])
        predicted = draw_instances(
            image[1],
            prediction,
            classes,
            palette,
            score_thr=score_thr,
            scale=scale[1])
        columns.append([(title, taught), ("student's prediction", predicted)])
    return columns


def _student_instances(model: SemiInstanceSegmentor, inputs: Tensor,
                       samples: list) -> List[InstanceData]:
    results = model.student.predict(
        inputs, [view_frame(sample) for sample in samples], rescale=False)
    found = []
    for result, sample in zip(results, samples):
        instances = result.pred_instances
        if 'masks' in instances:
            instances.masks = fit_canvas(instances.masks, sample.img_shape[:2])
        found.append(instances)
    return found
