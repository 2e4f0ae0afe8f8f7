# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData

from mmsemi.models.task_modules import cells_in_masks, points_in_masks


def corner() -> torch.Tensor:
    mask = torch.zeros(1, 4, 4, dtype=torch.long)
    mask[0, 0, 0] = 1
    return mask


@pytest.mark.parametrize('point, inside', [
    ((0, 0), True),
    ((1 / 3, 0), True),
    ((.125, .125), True),
    ((.25, .25), True),
    ((.374, .1), True),
    ((.376, .1), False),
    ((.5, .5), False),
])
def test_points_in_a_corner(point, inside):
    found = points_in_masks(torch.tensor([point]), corner())
    assert found.shape == (1, 1) and found.item() is inside


def test_the_rim_of_an_instance_at_the_rim():
    points = torch.tensor([[0, 0], [1, .5], [.5, .5]])
    masks = torch.cat([torch.ones(1, 4, 4).long(), 0 * corner()])
    found = points_in_masks(points, masks)
    assert found.tolist() == [[True, False]] * 3


def test_cells_overlap():
    masks = torch.zeros(2, 8, 8, dtype=torch.long)
    masks[0, :3, :3] = 1
    masks[1, 5, 2] = 1
    found = cells_in_masks((4, 4), masks)
    assert found.shape == (16, 2)
    assert found[:, 0].nonzero()[:, 0].tolist() == [0, 1, 4, 5]
    assert found[:, 1].nonzero()[:, 0].tolist() == [9]
    # Windows of pooling overlap where sizes do not divide.
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[0, 1, 3] = True
    assert cells_in_masks((4, 4), mask)[:, 0].nonzero()[:, 0].tolist() == [
        2, 6
    ]


def test_no_instance():
    masks = torch.zeros(0, 8, 8, dtype=torch.long)
    assert points_in_masks(torch.rand(5, 2), masks).shape == (5, 0)
    assert cells_in_masks((2, 3), masks).shape == (6, 0)


def test_cost():
    inside = torch.tensor([[True, False], [False, False], [True, True]])
    queries = InstanceData(inside=inside)
    cost = TASK_UTILS.build(dict(type='mmsemi.LocationCost'))
    found = cost(queries, InstanceData(labels=torch.tensor([0, 1])))
    assert found.tolist() == [[-1000, 0], [0, 0], [-1000, -1000]]
    cost = TASK_UTILS.build(dict(type='mmsemi.LocationCost', weight=2.5))
    assert cost(queries, InstanceData()).sum() == -7.5
