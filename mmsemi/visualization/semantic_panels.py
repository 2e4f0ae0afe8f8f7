# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Columns of a training panel: classes of every pixel."""
from typing import List, Sequence

from torch import Tensor

from mmsemi.methods import SemiSemanticSegmentor
from mmsemi.models.dense_forward import dense_logits
from .drawing import default_palette, draw_label_map


def semantic_columns(model: SemiSemanticSegmentor, weak: Tensor,
                     strong: Tensor, weak_samples: list, strong_samples: list,
                     images: Sequence[tuple], scales: Sequence[tuple], classes,
                     palette, score_thr: float) -> List[list]:
    """Draw pseudo-labels and predictions of every pixel.

    Args and returns as :func:`instance_columns`; ``classes`` and
    ``score_thr`` are not used. Pixels that are not learned from are dark in
    the teacher's picture.
    """
    pseudo_labels = model.label_unlabeled(weak, weak_samples)
    logits = dense_logits(model.student, strong, strong_samples)
    palette = palette or default_palette(logits.shape[1])
    columns = []
    for label, predicted, image, scale in zip(pseudo_labels, logits.argmax(1),
                                              images, scales):
        height, width = image[0].shape[:2]
        valid = label.valid
        share = ((label.weight > 0) & valid).sum() / valid.sum().clamp(min=1)
        columns.append([
            (f"teacher's pseudo-labels ({float(share):.0%} of pixels)",
             draw_label_map(image[0], label.label[:height, :width], palette,
                            label.weight[:height, :width], scale[0])),
            ("student's prediction",
             draw_label_map(
                 image[1],
                 predicted[:image[1].shape[0], :image[1].shape[1]],
                 palette,
                 scale=scale[1]))
        ])
    return columns
