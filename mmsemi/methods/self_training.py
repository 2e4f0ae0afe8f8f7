# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Self-training and ST++: what a round of training computes.

Yang et al., ST++: Make Self-training Work Better for Semi-supervised
Semantic Segmentation, CVPR 2022. A network trained on the labelled images
labels the unlabelled ones; a fresh network then learns from both, with
strong augmentation on the pseudo-labelled images only (``ST``). ST++ puts
the images whose labels hardly changed during the first training before the
others. Nothing here needs a runner; ``mmsemi.SelfTrainingLoop`` runs it all.

Facts of the released code that the defaults follow: labels are the argmax
of the summed softmax over scales and flip, without a threshold; reliability
is measured without test-time augmentation. One that they do not: the
released code labels with the weights that were best on the validation set.
"""
import math
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmsemi.structures.confusion_matrix import ConfusionMatrix, LabelMap
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL


def reliability(predictions: Sequence[LabelMap], num_classes: int) -> float:
    """Tell how stable an image's labels were during a training.

    ST++, equation 3: the mean IoU of each earlier prediction with the last
    one, averaged over the earlier ones. Classes that neither of the two has
    do not count.

    Args:
        predictions (Sequence[Tensor or np.ndarray]): Label maps (H, W) of
            one image, by the checkpoints of a training in their order, at
            least two. Pixels that are 255 in the last do not count.
        num_classes (int): Number of classes.

    Returns:
        float: In [0, 1], 1 where nothing changed.

    Raises:
        ValueError: If there are fewer than two predictions.
    """
    if len(predictions) < 2:
        raise ValueError(f'reliability needs the predictions of at least 2 '
                         f'checkpoints, got {len(predictions)}.')
    last = predictions[-1]
    return float(
        np.mean([
            ConfusionMatrix(num_classes).update(earlier, last).mean_iou()
            for earlier in predictions[:-1]
        ]))


def rank_by_reliability(scores: Sequence[float]) -> List[int]:
    """Return indices, the most reliable first, equals in their order.

    Args:
        scores (Sequence[float]): One score per image.

    Returns:
        list[int]: A permutation of the indices.

    Raises:
        ValueError: If a score is not a number.
    """
    wrong = [i for i, score in enumerate(scores) if math.isnan(score)]
    if wrong:
        raise ValueError(f'The reliability of image {wrong[0]} is nan: none '
                         'of its pixels has a class.')
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def select_reliable(scores: Sequence[float],
                    fraction: float = 0.5) -> Tuple[List[int], List[int]]:
    """Part images into reliable and unreliable ones.

    Args:
        scores (Sequence[float]): Reliability per image.
        fraction (float): Share of reliable images, in (0, 1); their number
            is rounded down. Defaults to 0.5, as in the paper.

    Returns:
        tuple[list[int], list[int]]: Indices of reliable and unreliable
        images, ascending.

    Raises:
        ValueError: If ``fraction`` is outside the range or one part would
            be empty.
    """
    check_fraction(fraction, 'reliable_fraction')
    count = int(len(scores) * fraction)
    if not 0 < count < len(scores):
        raise ValueError(
            f'reliable_fraction={fraction} of {len(scores)} unlabelled '
            f'images are {count}; at least 1 must be reliable and 1 not.')
    order = rank_by_reliability(scores)
    return sorted(order[:count]), sorted(order[count:])


def check_fraction(value: float, field: str) -> None:
    """Raise ValueError unless ``value`` is a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(
            value, (int, float)) or not 0 < value < 1:
        raise ValueError(f'{field}={value!r}; allowed are numbers between 0 '
                         'and 1, both excluded.')


def checkpoint_steps(num_steps: int) -> Tuple[int, int, int]:
    """Return the steps whose predictions tell the reliability.

    Args:
        num_steps (int): Length T of the first training, at least 3.

    Returns:
        tuple[int, int, int]: floor(T / 3), floor(2 T / 3) and T.

    Raises:
        ValueError: If the training is too short.
    """
    if num_steps < 3:
        raise ValueError(f'A training of {num_steps} steps has no three '
                         'checkpoints; select_reliable needs at least 3 '
                         'steps in round 0 (train_cfg.round_iters).')
    return num_steps // 3, 2 * num_steps // 3, num_steps


@torch.no_grad()
def tta_probabilities(logits_of: Callable[[Tensor], Tensor],
                      inputs: Tensor,
                      scales: Sequence[float] = (1., ),
                      flip: bool = False) -> Tensor:
    """Average class probabilities over sizes and mirrored images.

    As in the released code the images are resized to the rounded down size
    with ``align_corners=True``, and probabilities, not logits, are resized
    back.

    Args:
        logits_of (Callable): From images (N, 3, h, w) to logits
            (N, C, h, w).
        inputs (Tensor): Normalised images (N, 3, H, W).
        scales (Sequence[float]): Factors of the size. Defaults to (1.,).
        flip (bool): Whether each size is mirrored, too. Defaults to False.

    Returns:
        Tensor: Probabilities (N, C, H, W).
    """
    size = tuple(inputs.shape[2:])
    total, count = 0, 0
    for scale in scales:
        scaled = tuple(max(int(length * scale), 1) for length in size)
        resized = _resize(inputs, scaled)
        for mirrored in (False, True) if flip else (False, ):
            images = resized.flip(3) if mirrored else resized
            prob = logits_of(images).float().softmax(1)
            total = total + _resize(prob.flip(3) if mirrored else prob, size)
            count += 1
    return total / count


def label_by_argmax(probabilities: Tensor,
                    confidence_thr: Optional[float] = None) -> Tensor:
    """Turn probabilities into pseudo-labels.

    Args:
        probabilities (Tensor): (..., C, H, W).
        confidence_thr (float, optional): Pixels whose class is less
            probable become 255. Defaults to None: all keep their class, as
            in the paper.

    Returns:
        Tensor: Classes (..., H, W) int64.
    """
    confidence, label = probabilities.max(-3)
    if confidence_thr is not None:
        label[confidence < confidence_thr] = IGNORE_LABEL
    return label


def segmentor_logits(model: torch.nn.Module, inputs: Tensor) -> Tensor:
    """Return the logits that a segmenter infers by.

    Args:
        model (nn.Module): mmseg's EncoderDecoder, also in mode ``slide``.
        inputs (Tensor): Preprocessed images (N, 3, H, W).

    Returns:
        Tensor: Logits (N, C, H, W).
    """
    size = tuple(inputs.shape[2:])
    # One dict per image: sliding windows write into the first.
    metas = [
        dict(ori_shape=size, img_shape=size, pad_shape=size)
        for _ in range(len(inputs))
    ]
    return model.inference(inputs, metas)


def _resize(images: Tensor, size: Tuple[int, int]) -> Tensor:
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode='bilinear', align_corners=True)
