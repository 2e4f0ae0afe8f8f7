# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Which cells become queries; expected values are the official code's."""
import pytest
import torch
from torch import nn

from mmsemi.models.layers import (InstanceActivationQueries, activation_scores,
                                  cell_locations, local_maxima)

# Two classes on a map of 4 x 5 cells.
PROB = torch.tensor([
    [[.10, .20, .11, .05, .06], [.19, .60, .55, .07, .08],
     [.09, .30, .12, .04, .33], [.03, .02, .01, .013, .014]],
    [[.05, .05, .05, .02, .40], [.05, .10, .15, .50, .05],
     [.05, .05, .05, .03, .05], [.45, .01, .005, .42, .012]],
])
PROB = torch.cat([PROB, 1 - PROB.sum(0, keepdim=True)])[None]
ORDER = [
    6, 8, 15, 18, 14, 7, 4, 11, 1, 5, 12, 2, 0, 10, 9, 3, 13, 16, 19, 17
]


class Given(nn.Module):
    """Takes the place of the classifier."""

    def forward(self, feat):
        return PROB.to(feat).log().expand(len(feat), -1, -1, -1)


@pytest.mark.parametrize('num', [1, 3, 5, 6, 8, 20])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_order(num, dtype):
    queries = InstanceActivationQueries(2, 4, num).to(dtype)
    queries.cls_head = Given()
    feat = torch.rand(2, 4, 4, 5, dtype=dtype)
    pos = torch.rand(1, 4, 4, 5, dtype=dtype)
    found = queries(feat, pos)
    # 14 outranks 7, which is larger but next to 6; 8 is next to 7, but of
    # another class; 15, 18 and 14 are background for the most part.
    assert found.indices.tolist() == [ORDER[:num]] * 2
    assert found.logits.shape == (2, 3, 4, 5)
    columns = feat.flatten(2).transpose(1, 2)
    assert torch.equal(found.features, columns[:, ORDER[:num]])
    columns = pos.flatten(2).transpose(1, 2)[0]
    assert torch.equal(found.positions[1], columns[ORDER[:num]])


def test_scores_of_maxima_are_above_one():
    scores = activation_scores(PROB)[0].flatten()
    assert (scores >= 1).nonzero()[:, 0].tolist() == [6, 8, 14, 15, 18]
    assert scores[6].item() == pytest.approx(1.6)
    assert scores[7].item() == pytest.approx(.55)


@pytest.mark.parametrize('values, expected', [
    ([[0., 0, 0, 0], [0, .3, .3, 0], [0, 0, 0, 0]], [5, 6]),
    ([[0., 0], [0, 0]], []),
    ([[.2, .2], [.2, .2]], [0, 1, 2, 3]),
    ([[1e-6, 5e-7]], [0]),
    ([[.5]], [0]),
])
def test_local_maxima(values, expected):
    values = torch.tensor(values)[None]
    found = local_maxima(values, torch.zeros_like(values).long())
    assert found.flatten().nonzero()[:, 0].tolist() == expected


def test_other_labels_do_not_count():
    values = torch.tensor([[[.5, .4, .3]]])
    for labels, expected in (([0, 0, 0], [0]), ([0, 1, 0], [0, 1, 2]),
                             ([0, 1, 1], [0, 1])):
        found = local_maxima(values, torch.tensor([[labels]]))
        assert found.flatten().nonzero()[:, 0].tolist() == expected


def test_locations():
    indices = torch.tensor([ORDER[:5]])
    torch.testing.assert_close(
        cell_locations(indices, (4, 5)),
        torch.tensor([[[.25, 1 / 3], [.75, 1 / 3], [0, 1], [.75, 1],
                       [1, 2 / 3]]]))
    grid = cell_locations(torch.arange(12)[None], (3, 4))[0]
    torch.testing.assert_close(grid[:4, 0], torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert grid[::4, 1].tolist() == [0, .5, 1]
    assert cell_locations(torch.tensor([[0]]), (1, 1)).tolist() == [[[0, 0]]]


def test_the_choice_has_no_gradient():
    queries = InstanceActivationQueries(2, 4, 3)
    feat = torch.rand(1, 4, 4, 5, requires_grad=True)
    found = queries(feat, torch.rand(1, 4, 4, 5))
    found.features.sum().backward()
    assert feat.grad.any()
    assert all(p.grad is None for p in queries.parameters())
    found.logits.sum().backward()
    assert all(p.grad is not None for p in queries.parameters())


def test_too_few_cells():
    queries = InstanceActivationQueries(2, 4, 100)
    with pytest.raises(ValueError, match='8 x 8 cells.*num_queries=100'):
        queries(torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 8))
