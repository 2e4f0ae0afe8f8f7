# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Views of an image as mmdet's data samples."""
from typing import Tuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from mmsemi.structures.tensor_masks import TensorMasks


def view_matrix(sample: DetDataSample) -> Tensor:
    """Return the matrix (3, 3) from the original image into the view."""
    if 'homography_matrix' not in sample:
        raise ValueError(
            'An unlabelled view has no homography_matrix. Pack it with '
            "mmsemi.PackDetInputs, or list 'homography_matrix' in meta_keys "
            'of mmdet.PackDetInputs.')
    return torch.as_tensor(np.asarray(sample.homography_matrix))


def without_annotations(sample: DetDataSample) -> DetDataSample:
    """Return a sample with the same meta information and nothing else."""
    return DetDataSample(metainfo=sample.metainfo)


def view_frame(sample: DetDataSample) -> DetDataSample:
    """Return a bare sample whose original image is the view itself.

    Segmenters disagree on what ``rescale=False`` means for masks: some
    paste into the resized, some into the padded, some into the original
    image. If view and original are the same, all agree.
    """
    sample = without_annotations(sample)
    sample.set_metainfo(
        dict(ori_shape=tuple(sample.img_shape[:2]), scale_factor=(1., 1.)))
    return sample


def fit_canvas(masks: Tensor, shape: Tuple[int, int]) -> Tensor:
    """Crop masks (N, H, W) to a height and width, or pad with background."""
    masks = masks[:, :shape[0], :shape[1]]
    if tuple(masks.shape[1:]) == tuple(shape):
        return masks
    canvas = masks.new_zeros((len(masks), *shape))
    canvas[:, :masks.shape[1], :masks.shape[2]] = masks
    return canvas


def pseudo_sample(sample: DetDataSample,
                  label: InstanceData) -> DetDataSample:
    """Return a training sample whose ground truth is a pseudo-label.

    Args:
        sample (DetDataSample): The student's view.
        label (InstanceData): Pseudo-label in that view, unpadded.

    Returns:
        DetDataSample: Sample with ``gt_instances`` (masks padded to the
        batch) and empty ``ignored_instances``.
    """
    sample = without_annotations(sample)
    label = label.new()
    if 'masks' in label:
        label.masks = TensorMasks(label.masks).pad(sample.batch_input_shape)
    sample.gt_instances = label
    sample.ignored_instances = InstanceData(
        bboxes=label.bboxes.new_zeros((0, 4)),
        labels=label.labels.new_zeros((0, )))
    return sample
