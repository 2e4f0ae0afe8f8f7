# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""NMS in torch against a loop and the compiled op."""
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from mmsemi.uncompiled_ops import common

_ext = import_module('mmcv._ext')
ops = import_module('mmsemi.uncompiled_ops.nms')


def loop_nms(boxes: Tensor, scores: Tensor, iou_threshold: float,
             offset: int) -> Tensor:
    """The definition, box by box."""
    kept = []
    for index in scores.sort(descending=True)[1].tolist():
        x1, y1, x2, y2 = boxes[index]
        for other in kept:
            a1, b1, a2, b2 = boxes[other]
            width = (min(x2, a2) - max(x1, a1) + offset).clamp(min=0)
            height = (min(y2, b2) - max(y1, b1) + offset).clamp(min=0)
            inter = width * height
            union = ((x2 - x1 + offset) * (y2 - y1 + offset) +
                     (a2 - a1 + offset) * (b2 - b1 + offset) - inter)
            if inter / union > iou_threshold:
                break
        else:
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long)


REFERENCES = [loop_nms]
# Without compiled ops this is the placeholder: then the loop is all there is
# to compare with.
if not hasattr(_ext, '__mmsemi_placeholder__'):
    REFERENCES.append(_ext.nms)


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch):
    """Test the torch path, also where torchvision is installed."""
    monkeypatch.setattr(common, 'torchvision_ops', lambda: None)


def random_boxes(number: int, seed: int) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(number, 2, generator=generator) * 60
    side = torch.rand(number, 2, generator=generator) * 30
    scores = torch.rand(number, generator=generator)
    return torch.cat([start, start + side], dim=1), scores


@pytest.mark.parametrize('reference', REFERENCES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.7])
def test_nms_equals(reference, offset, threshold, monkeypatch) -> None:
    # A small block, so that boxes are settled in several rounds.
    monkeypatch.setattr(ops, 'NMS_BLOCK', 16)
    for seed, number in enumerate((1, 2, 40, 60)):
        boxes, scores = random_boxes(number, seed)
        if number == 60:
            boxes[1:5] = boxes[0]  # the same box
            boxes[6, 2:] = boxes[6, :2]  # no area
            boxes[7] = boxes[7, [2, 3, 0, 1]]  # turned inside out
            boxes[8] += 1e4
        expected = reference(
            boxes, scores, iou_threshold=threshold, offset=offset)
        kept = ops.nms(boxes, scores, iou_threshold=threshold, offset=offset)
        assert kept.dtype == torch.long
        assert kept.tolist() == expected.tolist()


def test_nms_by_hand() -> None:
    boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 2], [10, 10, 12, 12],
                          [0, 2, 4, 4]])
    scores = torch.tensor([.2, .9, .5, .4])
    # Boxes 1 and 0 have an IoU of exactly 1/2, which is not above it.
    assert ops.nms(boxes, scores, 0.5, 0).tolist() == [1, 2, 3, 0]
    assert ops.nms(boxes, scores, 0.49, 0).tolist() == [1, 2, 3]
    # With offset 1 their IoU is 15 / 25, and boxes 1 and 3 share one row of
    # five: 5 / 25.
    assert ops.nms(boxes, scores, 0.59, 1).tolist() == [1, 2, 3]
    assert ops.nms(boxes, scores, 0.61, 1).tolist() == [1, 2, 3, 0]
    assert ops.nms(boxes, scores, 0.21, 1).tolist() == [1, 2, 3]
    assert ops.nms(boxes, scores, 0.19, 1).tolist() == [1, 2]


def test_nms_chain_is_greedy() -> None:
    # Each box overlaps its neighbours alone: every second one stays.
    start = torch.arange(101.)
    boxes = torch.stack(
        [start, torch.zeros(101), start + 1.5,
         torch.ones(101)], dim=1)
    kept = ops.nms(boxes, 1 - start / 200, 0.19, 0)
    assert kept.tolist() == list(range(0, 101, 2))


@pytest.mark.parametrize('dtype',
                         [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_types(dtype) -> None:
    boxes, scores = random_boxes(50, 0)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    expected = loop_nms(
        boxes if dtype == torch.float64 else boxes.float(), scores, .3, 0)
    assert ops.nms(boxes, scores, 0.3, 0).tolist() == expected.tolist()


def test_nms_of_nothing() -> None:
    kept = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, 0)
    assert kept.shape == (0, ) and kept.dtype == torch.long


def test_torchvision_serves_nms_without_offset(monkeypatch) -> None:
    used = []

    def nms(boxes, scores, iou_threshold):
        used.append(iou_threshold)
        return loop_nms(boxes, scores, iou_threshold, 0)

    monkeypatch.setattr(common, 'torchvision_ops',
                        lambda: SimpleNamespace(nms=nms))
    boxes, scores = random_boxes(30, 0)
    for offset in (0, 1):
        kept = ops.nms(boxes, scores, iou_threshold=0.3, offset=offset)
        expected = loop_nms(boxes, scores, 0.3, offset)
        assert kept.tolist() == expected.tolist()
    # Only the first call: torchvision knows no offset.
    assert used == [0.3]


def test_torchvision_is_looked_up_once_and_may_be_broken(
        tmp_path, monkeypatch) -> None:
    monkeypatch.undo()
    look_up = common.torchvision_ops.__wrapped__
    fake = ModuleType('torchvision')
    fake.ops = SimpleNamespace()
    monkeypatch.setitem(sys.modules, 'torchvision', fake)
    assert look_up() is fake.ops
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    assert look_up() is None
    # What torchvision raises when it was built for another torch.
    (tmp_path / 'torchvision.py').write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.delitem(sys.modules, 'torchvision')
    monkeypatch.syspath_prepend(tmp_path)
    assert look_up() is None
