# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.task_modules.assigners import ClassificationCost
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData

from mmsemi.models.task_modules import SoftClassificationCost

LOGITS = torch.tensor([[2., 1., 0., -1.], [.5, .2, .1, 1.5]])
SOFT = torch.tensor([[.7, .2, .05, .05], [0., 1., 0., 0.]])


@pytest.fixture
def queries():
    return InstanceData(scores=LOGITS)


def test_reference_values(queries):
    cost = TASK_UTILS.build(dict(type='mmsemi.SoftClassificationCost'))
    expected = torch.tensor([[-.504077, -.236883], [-.198384, -.144425]])
    instances = InstanceData(labels=torch.tensor([0, 1]), soft_labels=SOFT)
    torch.testing.assert_close(
        cost(queries, instances), expected, atol=1e-6, rtol=0)
    # As a query head hands them on.
    found = cost(queries, InstanceData(labels=torch.tensor([0, 1])),
                 dict(gt_soft_labels=SOFT))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    # What is on the instances goes first.
    found = cost(queries, instances, dict(gt_soft_labels=SOFT.flip(0)))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_labels_and_one_hot_soft_labels_cost_the_same(queries):
    labels = torch.tensor([2, 0, 1])
    theirs = ClassificationCost(weight=2.)(queries,
                                           InstanceData(labels=labels))
    cost = SoftClassificationCost(weight=2.)
    hard = cost(queries, InstanceData(labels=labels), dict(img_shape=(4, 4)))
    soft = cost(
        queries,
        InstanceData(
            labels=labels, soft_labels=F.one_hot(labels, 4).float()))
    assert torch.equal(hard, theirs) and torch.equal(soft, theirs)


def test_no_instance(queries):
    instances = InstanceData(
        labels=torch.zeros(0).long(), soft_labels=torch.zeros(0, 4))
    assert SoftClassificationCost()(queries, instances).shape == (2, 0)


def test_full_precision_inside_autocast(queries):
    instances = InstanceData(labels=torch.tensor([0, 1]), soft_labels=SOFT)
    with torch.autocast('cpu', torch.bfloat16):
        found = SoftClassificationCost()(queries, instances)
    assert found.dtype == torch.float32
    assert found[0, 0].item() == pytest.approx(-.504077, abs=1e-6)
