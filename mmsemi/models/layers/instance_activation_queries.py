# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""FastInst's queries: the cells where a dense classifier sees instances."""
from typing import NamedTuple, Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmsemi.models.losses.dense_losses import full_precision


class QueryProposals(NamedTuple):
    """Cells of a map that were chosen as queries."""
    logits: Tensor  #: (N, C + 1, h, w) of all cells.
    indices: Tensor  #: (N, Q) of the chosen cells, row by row.
    features: Tensor  #: (N, Q, D), the map's columns there.
    positions: Tensor  #: (N, Q, D), the positional map's columns there.


class InstanceActivationQueries(BaseModule):
    """Instance-activation-guided queries.

    A dense classifier gives every cell of the stride-16 map C + 1 classes,
    and the cells that :func:`activation_scores` ranks first become queries.
    The choice itself has no gradient: the classifier learns by its own loss.

    FastInst (J. He et al., CVPR 2023); the rule is that of its official
    code.

    Args:
        num_classes (int): Classes C without background.
        feat_channels (int): Channels D of the map. Defaults to 256.
        num_queries (int): Cells Q to choose. Defaults to 100.
        eps (float): Probability below which no cell is a local maximum.
            Defaults to 1e-6.
    """

    def __init__(self,
                 num_classes: int,
                 feat_channels: int = 256,
                 num_queries: int = 100,
                 eps: float = 1e-6) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.eps = eps
        self.cls_head = nn.Sequential(
            nn.Conv2d(feat_channels, feat_channels, 3, padding=1), nn.ReLU(),
            nn.Conv2d(feat_channels, num_classes + 1, 1))

    def forward(self, feat: Tensor, pos: Tensor) -> QueryProposals:
        """Choose queries.

        Args:
            feat (Tensor): (N, D, h, w).
            pos (Tensor): Positional map (1, D, h, w).

        Returns:
            QueryProposals: In order of their scores.

        Raises:
            ValueError: If the map has fewer cells than queries are wanted.
        """
        height, width = feat.shape[-2:]
        if height * width < self.num_queries:
            raise ValueError(
                f'The map that queries are taken from has {height} x {width} '
                f'cells, fewer than panoptic_head.num_queries='
                f'{self.num_queries}. Use larger images (a cell is 16 pixels '
                'wide) or fewer queries.')
        logits = self.cls_head(feat)
        scores = activation_scores(
            full_precision(logits.detach()).softmax(1), self.eps)
        indices = scores.flatten(1).topk(self.num_queries).indices
        return QueryProposals(logits, indices, _columns(feat, indices),
                              _columns(pos.expand_as(feat), indices))


def activation_scores(prob: Tensor, eps: float = 1e-6) -> Tensor:
    """Rank cells for :class:`InstanceActivationQueries`.

    Args:
        prob (Tensor): Probabilities (N, C + 1, h, w), background last.
        eps (float): See :func:`local_maxima`.

    Returns:
        Tensor: (N, h, w), the largest probability of a foreground class,
        plus 1 at local maxima.
    """
    best, label = prob[:, :-1].max(1)
    return best + local_maxima(best, label, eps)


def local_maxima(values: Tensor, labels: Tensor, eps: float = 1e-6) -> Tensor:
    """Find cells that no neighbour of the same label surpasses.

    Equal neighbours are all maxima; neighbours of other labels do not count.

    Args:
        values (Tensor): (N, h, w), not negative.
        labels (Tensor): (N, h, w), from 0.
        eps (float): Smallest value of a maximum. Defaults to 1e-6.

    Returns:
        Tensor: (N, h, w) bool.
    """
    # 0 is the label of what lies outside.
    planes = torch.stack([values, (labels + 1).to(values)], dim=1)
    size = values.shape[-2:]
    around = F.unfold(planes, 3, padding=1).reshape(len(values), 2, 9, *size)
    rivals = around[:, 0] * (around[:, 1] == planes[:, None, 1])
    return (values >= rivals.amax(1)) & (values >= eps)


def cell_locations(indices: Tensor, size: Tuple[int, int]) -> Tensor:
    """Return where cells lie in the image.

    Args:
        indices (Tensor): (N, Q), row by row.
        size (tuple[int, int]): Height and width of the map, in cells.

    Returns:
        Tensor: x and y (N, Q, 2) float32: 0 for the first column and row, 1
        for the last, as in the official code.
    """
    height, width = size
    x = (indices % width) / max(width - 1, 1)
    y = (indices // width) / max(height - 1, 1)
    return torch.stack([x, y], dim=-1)


def _columns(feat: Tensor, indices: Tensor) -> Tensor:
    feat = feat.flatten(2).transpose(1, 2)
    return feat.gather(1, indices[..., None].expand(-1, -1, feat.shape[2]))
