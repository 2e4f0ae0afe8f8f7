# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
from torch import nn

from mmsemi.models.evaluation_mode import evaluating


def test_modes_come_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(2)))
    with pytest.raises(RuntimeError, match='broken'), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError('broken')
    assert all(module.training for module in model.modules())
    model.eval()
    with evaluating(model) as same:
        assert same is model
    assert not model.training


def test_modules_that_refuse_to_train_stay_so():
    """As mmdet's ResNet does with the statistics of its batch norm."""

    class Frozen(nn.Module):

        def train(self, mode=True):
            return super().train(False)

    model = nn.Sequential(Frozen(), nn.Dropout()).train()
    with evaluating(model):
        assert not model[1].training
    assert model[1].training and not model[0].training
