# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Deformable attention and focal loss in torch."""
from importlib import import_module

import pytest
import torch

from mmsemi.compat import UncompiledOps
from mmsemi.uncompiled_ops import get_op

# mmsemi has to prepare mmcv before its ops are imported.
focal_loss = import_module('mmcv.ops.focal_loss')
multi_scale_deform_attn = import_module('mmcv.ops.multi_scale_deform_attn')


def test_deformable_attention_equals_mmcv(monkeypatch) -> None:
    monkeypatch.setattr(multi_scale_deform_attn, 'ext_module',
                        UncompiledOps())
    shapes = torch.tensor([[4, 3], [2, 2]])
    start = torch.tensor([0, 12])
    generator = torch.Generator().manual_seed(0)

    def inputs() -> list:
        generator.manual_seed(0)
        return [
            torch.rand(*shape, generator=generator).requires_grad_()
            for shape in ((2, 16, 2, 5), (2, 6, 2, 2, 3, 2), (2, 6, 2, 2, 3))
        ]

    value, locations, weights = ours = inputs()
    output = multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
        value, shapes, start, locations, weights, 64)
    theirs = inputs()
    expected = multi_scale_deform_attn.multi_scale_deformable_attn_pytorch(
        theirs[0], shapes, theirs[1], theirs[2])
    assert torch.equal(output, expected)
    for result in (output, expected):
        result.square().sum().backward()
    for tensor, other in zip(ours, theirs):
        assert other.grad.abs().sum() > 0
        torch.testing.assert_close(tensor.grad, other.grad)


@pytest.mark.parametrize('gamma', [0.0, 2.0, 1.5])
@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss_equals_its_definition(gamma, weighted,
                                          monkeypatch) -> None:
    monkeypatch.setattr(focal_loss, 'ext_module', UncompiledOps())
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64) * 4
    # 3 is background, which has no weight of its own.
    target = torch.tensor([0, 2, 1, 1, 0, 2 if weighted else 3])
    weight = torch.tensor([.5, 2, 3.]).double() if weighted else None
    ours = logits.clone().requires_grad_()
    loss = focal_loss.sigmoid_focal_loss(ours, target, gamma, 0.25, weight,
                                         'none')
    theirs = logits.clone().requires_grad_()
    p = theirs.sigmoid()
    positive = torch.nn.functional.one_hot(target, 4)[:, :3].bool()
    expected = torch.where(positive, -0.25 * (1 - p)**gamma * p.log(),
                           -0.75 * p**gamma * (1 - p).log())
    if weighted:
        expected = expected * weight[target][:, None]
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_focal_loss_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]])
    arguments = (logits, torch.tensor([1]), torch.zeros(0))
    for name, expected in (('forward', [[7500, 2500]]), ('backward',
                                                         [[0.75, -0.25]])):
        result = torch.zeros(1, 2)
        op = get_op(f'sigmoid_focal_loss_{name}')
        op(*arguments, result, gamma=2.0, alpha=0.25)
        assert result.tolist() == expected
