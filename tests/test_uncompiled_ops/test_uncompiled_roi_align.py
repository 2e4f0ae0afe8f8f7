# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""RoIAlign in torch against a loop and the compiled op."""
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mmsemi.compat import UncompiledOps
from mmsemi.uncompiled_ops import common

# mmsemi has to prepare mmcv before its ops are imported.
_ext = import_module('mmcv._ext')
mmcv_roi_align = import_module('mmcv.ops.roi_align')
ops = import_module('mmsemi.uncompiled_ops.roi_align')

AVERAGE, MAX = 1, 0


def loop_sample(image: Tensor, y: float, x: float) -> Tensor:
    """Read (C, H, W) at one point, as RoIAlign does."""
    height, width = image.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return image.new_zeros(len(image))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return ((1 - dy) * (1 - dx) * image[:, top, left] + (1 - dy) * dx *
            image[:, top, right] + dy * (1 - dx) * image[:, bottom, left] +
            dy * dx * image[:, bottom, right])


def loop_roi_align(input: Tensor,
                   rois: Tensor,
                   size: tuple,
                   spatial_scale: float = 1.0,
                   sampling_ratio: int = -1,
                   aligned: bool = False) -> Tensor:
    """The definition, sample by sample; differentiable."""
    output = []
    for number, *corners in rois.tolist():
        shift = 0.5 if aligned else 0.0
        x1, y1, x2, y2 = (c * spatial_scale - shift for c in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        bin_h, bin_w = height / size[0], width / size[1]
        grid_h = sampling_ratio if sampling_ratio > 0 else -int(-bin_h // 1)
        grid_w = sampling_ratio if sampling_ratio > 0 else -int(-bin_w // 1)
        for row in range(size[0]):
            for column in range(size[1]):
                samples = [
                    loop_sample(input[int(number)],
                                y1 + (row + (iy + .5) / grid_h) * bin_h,
                                x1 + (column + (ix + .5) / grid_w) * bin_w)
                    for iy in range(grid_h) for ix in range(grid_w)
                ]
                output.append(
                    torch.stack(samples).mean(0) if samples else input.
                    new_zeros(input.size(1)))
    return torch.stack(output).view(len(rois), *size,
                                    input.size(1)).permute(0, 3, 1, 2)


def align(module, input: Tensor, rois: Tensor, size: tuple, scale: float,
          ratio: int, aligned: bool) -> tuple:
    """Call forward and backward of an op module as mmcv does."""
    output = input.new_zeros(len(rois), input.size(1), *size)
    empty = input.new_zeros(0)
    settings = dict(
        aligned_height=size[0],
        aligned_width=size[1],
        spatial_scale=scale,
        sampling_ratio=ratio,
        pool_mode=AVERAGE,
        aligned=aligned)
    module.roi_align_forward(input, rois, output, empty, empty, **settings)
    gradient = torch.zeros_like(input)
    module.roi_align_backward(
        torch.linspace(-1, 1, output.numel()).view_as(output), rois, empty,
        empty, gradient, **settings)
    return output, gradient


def align_by_loop(input: Tensor, rois: Tensor, size: tuple, scale: float,
                  ratio: int, aligned: bool) -> tuple:
    input = input.clone().requires_grad_()
    output = loop_roi_align(input, rois, size, scale, ratio, aligned)
    output.backward(torch.linspace(-1, 1, output.numel()).view_as(output))
    return output.detach(), input.grad


REFERENCES = [align_by_loop]
# Without compiled ops this is the placeholder: then the loop is all there is
# to compare with.
if not hasattr(_ext, '__mmsemi_placeholder__'):
    REFERENCES.append(lambda *args: align(_ext, *args))


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch):
    """Test the torch path, also where torchvision is installed."""
    monkeypatch.setattr(common, 'torchvision_ops', lambda: None)


def random_rois(aligned: bool, height: float, width: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(14, 2, 2, generator=generator) * 1.6 - 0.3
    corners = corners * torch.tensor([width, height])
    low, high = corners.min(1)[0], corners.max(1)[0]
    high[0] = low[0]  # a point
    high[1, 0] = low[1, 0]  # a line
    low[2], high[2] = -90, -80  # outside
    low[3], high[3] = -10, 25  # larger than the image
    low[4], high[4] = torch.tensor([width, height]) - .5, 30
    if not aligned:
        high[5] = low[5] - 3  # inside out; the compiled op refuses it aligned
    number = torch.arange(14.)[:, None] % 2
    return torch.cat([number, low, high], dim=1)


@pytest.mark.parametrize('reference', REFERENCES)
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 3])
@pytest.mark.parametrize('size, scale', [((3, 2), 0.5), ((1, 5), 1.0)])
def test_roi_align_equals(reference, aligned, ratio, size, scale,
                          monkeypatch) -> None:
    # A small limit, so that one box is split into several matrices.
    monkeypatch.setattr(ops, 'ROI_ALIGN_WEIGHTS', 50)
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 3, 9, 7, generator=generator)
    rois = random_rois(aligned, 9 / scale, 7 / scale)
    arguments = (input, rois, size, scale, ratio, aligned)
    output, gradient = align(ops, *arguments)
    expected_output, expected_gradient = reference(*arguments)
    torch.testing.assert_close(output, expected_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize('reference', REFERENCES[1:] or [
    lambda input, rois, *args: align(ops, input.double(), rois.double(), *args)
])
def test_roi_align_at_the_size_of_training(reference) -> None:
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(2, 8, 50, 40, generator=generator)
    start = torch.rand(64, 2, generator=generator) * 120
    side = torch.rand(64, 2, generator=generator) * 80
    number = torch.arange(64.)[:, None] % 2
    rois = torch.cat([number, start, start + side], dim=1)
    arguments = (input, rois, (7, 7), 0.25, 0, True)
    for value, expected in zip(align(ops, *arguments), reference(*arguments)):
        torch.testing.assert_close(
            value, expected.to(value.dtype), rtol=0, atol=1e-5)


def test_roi_align_by_hand() -> None:
    input = torch.arange(16.).view(1, 1, 4, 4)
    rois = torch.tensor([[0, 0., 0, 2, 2], [0, 1, 1, 3, 3]])
    output, _ = align(ops, input, rois, (1, 1), 1.0, 0, True)
    # Pixels 0 1 4 5 and 5 6 9 10 lie in the boxes.
    assert output.flatten().tolist() == [2.5, 7.5]
    output, gradient = align(ops, input, rois[:1], (2, 2), 1.0, 1, True)
    assert output.flatten().tolist() == [0, 1, 4, 5]
    # The gradient of the four bins is -1, -1/3, 1/3 and 1.
    torch.testing.assert_close(gradient[0, 0, :2, :2],
                               torch.tensor([[-1, -1 / 3], [1 / 3, 1]]))
    assert gradient.count_nonzero() == 4


def test_roi_align_adds_to_the_gradient() -> None:
    input = torch.ones(1, 1, 4, 4)
    rois = torch.tensor([[0, 0., 0, 2, 2]])
    gradient = torch.full_like(input, 5)
    empty = input.new_zeros(0)
    ops.roi_align_backward(
        torch.ones(1, 1, 1, 1),
        rois,
        empty,
        empty,
        gradient,
        aligned_height=1,
        aligned_width=1,
        spatial_scale=1.0,
        sampling_ratio=0,
        pool_mode=AVERAGE,
        aligned=True)
    expected = torch.full_like(input, 5)
    expected[..., :2, :2] += 0.25
    assert torch.equal(gradient, expected)


def test_roi_align_of_nothing_and_of_broken_boxes() -> None:
    input = torch.ones(1, 2, 4, 4)
    output, gradient = align(ops, input, torch.zeros(0, 5), (3, 3), 1., 0,
                             True)
    assert output.shape == (0, 2, 3, 3) and not gradient.any()
    nan, inf = float('nan'), float('inf')
    rois = torch.tensor([[0, nan, 0, 2, 2], [0, 0, 0, inf, 2], [0, 0, 0, 2,
                                                                2]])
    output, gradient = align(ops, input, rois, (1, 1), 1.0, 0, True)
    assert output.view(3, 2).tolist() == [[0, 0], [0, 0], [1, 1]]
    assert gradient.isfinite().all()
    with pytest.raises(IndexError, match='one of the 1 images.* 3.0'):
        align(ops, input, torch.tensor([[3, 0., 0, 2, 2]]), (1, 1), 1., 0,
              True)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_rounds_only_its_result(dtype) -> None:
    input = torch.randn(1, 2, 8, 8).to(dtype)
    rois = torch.tensor([[0, 1., 1, 6.5, 7], [0, 0, 0, 3, 3]]).to(dtype)
    output, gradient = align(ops, input, rois, (2, 2), 1.0, 2, True)
    exact, exact_gradient = align(ops, input.float(), rois.float(), (2, 2),
                                  1.0, 2, True)
    assert torch.equal(output, exact.to(dtype))
    torch.testing.assert_close(gradient.float(), exact_gradient, rtol=1e-2,
                               atol=1e-2)


def test_roi_align_under_autocast_computes_in_full() -> None:
    input = torch.randn(1, 2, 8, 8)
    rois = torch.tensor([[0, 1., 1, 6.5, 7]])
    arguments = (input, rois, (3, 3), 1.0, 0, True)
    expected = align(ops, *arguments)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = align(ops, *arguments)
    assert torch.equal(result[0], expected[0])
    assert torch.equal(result[1], expected[1])


@pytest.mark.parametrize('function',
                         [ops.roi_align_forward, ops.roi_align_backward])
def test_roi_align_refuses_max(function) -> None:
    input, empty = torch.ones(1, 1, 4, 4), torch.zeros(0)
    with pytest.raises(RuntimeError, match="pool_mode='max'"):
        function(
            input,
            torch.zeros(1, 5),
            input,
            empty,
            empty,
            aligned_height=1,
            aligned_width=1,
            spatial_scale=1.0,
            sampling_ratio=0,
            pool_mode=MAX,
            aligned=True)


def test_roi_align_of_mmcv_is_differentiable(monkeypatch) -> None:
    monkeypatch.setattr(mmcv_roi_align, 'ext_module', UncompiledOps())
    input = torch.randn(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0.3, 1.1, 3.2, 3.7]], dtype=torch.float64)
    layer = mmcv_roi_align.RoIAlign((2, 3), sampling_ratio=0, aligned=True)
    torch.autograd.gradcheck(lambda x: layer(x, rois), input)


def test_torchvision_serves_roi_align(monkeypatch) -> None:
    # A torchvision that records its calls stands in for the real one.
    calls = []

    def roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned):
        settings = (size, spatial_scale, sampling_ratio, aligned)
        calls.append(settings)
        return loop_roi_align(input, rois, *settings)

    input = torch.randn(2, 3, 9, 7)
    arguments = (input, random_rois(True, 18, 14), (3, 2), 0.5, 2, True)
    expected_output, expected_gradient = align(ops, *arguments)
    monkeypatch.setattr(common, 'torchvision_ops',
                        lambda: SimpleNamespace(roi_align=roi_align))
    output, gradient = align(ops, *arguments)
    assert calls == [((3, 2), 0.5, 2, True)] * 2
    torch.testing.assert_close(output, expected_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-5)
