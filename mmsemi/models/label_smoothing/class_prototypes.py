# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""How much classes look alike to a backbone."""
from collections import Counter
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmsemi.registry import MODELS


def instance_embeddings(feature_map: Tensor,
                        masks: Tensor,
                        bboxes: Optional[Tensor] = None) -> Tensor:
    """Average a feature map inside masks.

    Args:
        feature_map (Tensor): Features (D, h, w) of an image.
        masks (Tensor): Masks (N, H, W) over the same canvas, bool or in
            [0, 1]. Their shares of the cells are the weights.
        bboxes (Tensor, optional): Boxes (N, 4) as x1, y1, x2, y2 in pixels
            of the masks. An instance whose mask covers no cell gets the cell
            at the centre of its box. Defaults to None: it gets zeros.

    Returns:
        Tensor: Unit vectors (N, D) float32; zeros where there is nothing to
        average.
    """
    height, width = feature_map.shape[-2:]
    # A pass over all masks at once, also if there is none.
    shares = F.adaptive_avg_pool2d(masks.float(), (height, width)) if len(
        masks) else masks.new_zeros((0, height, width), dtype=torch.float32)
    shares = shares.flatten(1)
    if bboxes is not None:
        x = (bboxes[:, 0] + bboxes[:, 2]) / 2 * (width / masks.shape[2])
        y = (bboxes[:, 1] + bboxes[:, 3]) / 2 * (height / masks.shape[1])
        cell = y.long().clamp(0, height - 1) * width + x.long().clamp(
            0, width - 1)
        centre = torch.zeros_like(shares).scatter_(1, cell[:, None], 1.)
        shares = shares.where(shares.sum(1, keepdim=True) > 0, centre)
    # The length of the mean is normalised away, so the sum does as well.
    return F.normalize(shares @ feature_map.flatten(1).float().t(), dim=1)


def choose_instances(labels: Sequence[Sequence[int]],
                     max_per_class: Optional[int] = None,
                     seed: int = 0) -> List[Tuple[int, Dict[int, int]]]:
    """Choose the instances that make the prototypes.

    Images are gone through in random order, and each gives its instances of
    the classes that have not enough yet.

    Args:
        labels (Sequence[Sequence[int]]): Labels of each image's instances.
        max_per_class (int, optional): How many instances of a class are
            enough. Defaults to None: all are taken.
        seed (int): Seed of the order. Defaults to 0.

    Returns:
        list[tuple[int, dict]]: The images to look at, in their own order,
        each with the number of instances to take of each class.
    """
    taken: Counter = Counter()
    chosen = []
    for index in np.random.RandomState(seed).permutation(len(labels)):
        quota = dict(Counter(int(label) for label in labels[index]))
        if max_per_class is not None:
            quota = {
                label: min(number, max_per_class - taken[label])
                for label, number in quota.items()
                if taken[label] < max_per_class
            }
        if quota:
            taken.update(quota)
            chosen.append((int(index), quota))
    return sorted(chosen, key=lambda item: item[0])


@MODELS.register_module()
class ClassPrototypes(nn.Module):
    """Mean direction of the instance embeddings of every class.

    Each embedding has length one before it is added, so that a large or
    bright instance does not rule a class of few. The state is a running sum:
    parts of a data set can be added in any order and on any process.

    After F. Porcher et al., Better (pseudo-)labels for semi-supervised
    instance segmentation, 2024 (arXiv 2403.11675), which averages instance
    embeddings of the backbone. What is normalised, and when, is not public;
    the rule here is ours.

    Args:
        num_classes (int): Number of classes C.
        channels (int): Length D of an embedding.

    Raises:
        ValueError: If an argument is not a whole number from 1.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        for field, value in (('num_classes', num_classes), ('channels',
                                                            channels)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'ClassPrototypes.{field}={value!r}; allowed'
                                 ' are whole numbers from 1.')
        self.num_classes = num_classes
        self.channels = channels
        self.register_buffer(
            'sum', torch.zeros((num_classes, channels), dtype=torch.float64))
        self.register_buffer('count',
                             torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def update(self,
               feature_map: Tensor,
               masks: Tensor,
               labels: Tensor,
               bboxes: Optional[Tensor] = None) -> None:
        """Add the instances of an image.

        Args:
            feature_map (Tensor): See :func:`instance_embeddings`.
            masks (Tensor): See there.
            labels (Tensor): Classes (N,) int64.
            bboxes (Tensor, optional): See there.

        Raises:
            ValueError: If a label is no class.
        """
        if len(labels) == 0:
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f'ClassPrototypes.num_classes={self.num_classes}, but an '
                f'instance has label {low if low < 0 else high}.')
        embeddings = instance_embeddings(feature_map, masks, bboxes)
        found = embeddings.norm(dim=1) > 0
        labels = labels[found].to(self.count)
        self.sum.index_add_(0, labels, embeddings[found].to(self.sum))
        self.count += torch.bincount(labels, minlength=self.num_classes)

    def reduce(self) -> None:
        """Add up what all processes have; once, at the end."""
        all_reduce(self.sum)
        all_reduce(self.count)

    def prototypes(self) -> Tensor:
        """Return the prototypes.

        Returns:
            Tensor: Unit vectors (C, D) float64; zeros for classes without
            instances.
        """
        return F.normalize(self.sum, dim=1)

    def similarity(self) -> Tensor:
        """Return the cosines between the prototypes.

        Returns:
            Tensor: (C, C) float64 in [-1, 1]; zeros for classes without
            instances.
        """
        prototypes = self.prototypes()
        return (prototypes @ prototypes.t()).clamp(-1, 1)
