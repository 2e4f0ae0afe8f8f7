# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mmsemi.pseudo_labels import mask_iou


def boxes_as_masks(boxes, shape=(6, 8)):
    masks = torch.zeros((len(boxes), *shape), dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    return masks


def test_values_by_hand():
    masks = boxes_as_masks([(0, 0, 4, 4), (0, 0, 0, 0)])
    others = boxes_as_masks([(0, 0, 4, 4), (2, 2, 6, 6), (4, 4, 8, 6),
                             (0, 0, 0, 0)])
    iou = mask_iou(masks, others)
    assert iou.dtype == torch.float32
    # 16 of 16, 4 of 28, nothing, and empty masks overlap nothing.
    expected = torch.tensor([[1, 4 / 28, 0, 0], [0, 0, 0, 0]])
    assert iou.equal(expected)


def test_crowd_divides_by_the_first_area():
    masks = boxes_as_masks([(0, 0, 4, 4), (2, 2, 6, 6), (0, 0, 0, 0)])
    crowd = boxes_as_masks([(2, 0, 8, 6)])
    iou = mask_iou(masks, crowd, iscrowd=True)
    assert iou.tolist() == [[0.5], [1.0], [0.0]]


@pytest.mark.parametrize('iscrowd', [False, True])
def test_equals_pycocotools(iscrowd):
    rng = np.random.RandomState(0)
    a, b = rng.rand(5, 23, 17) > 0.5, rng.rand(4, 23, 17) > 0.3
    rles = [[
        coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks
    ] for masks in (a, b)]
    expected = coco_mask.iou(*rles, [iscrowd] * len(b))
    iou = mask_iou(torch.from_numpy(a), torch.from_numpy(b), iscrowd)
    np.testing.assert_allclose(iou.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize('chunk_pixels', [1, 7, 48, 1000])
def test_chunks_change_nothing(chunk_pixels):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 6, 8, generator=generator) > 0.5
    b = torch.rand(4, 6, 8, generator=generator) > 0.5
    assert mask_iou(a, b, chunk_pixels=chunk_pixels).equal(mask_iou(a, b))
    assert mask_iou(a, a, chunk_pixels=chunk_pixels).equal(
        mask_iou(a, a.clone()))


def test_counts_stay_exact_where_half_precision_would_not():
    # bfloat16 cannot tell 4,097 pixels from 4,096.
    a = torch.ones(1, 4097, 1, dtype=torch.bool)
    b = a.clone()
    b[0, 0] = False
    with torch.autocast('cpu', dtype=torch.bfloat16):
        iou = mask_iou(a, b)
    assert iou.dtype == torch.float32
    assert iou.item() == torch.tensor(4096 / 4097).item()


@pytest.mark.parametrize('num, num_others', [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_compare(num, num_others):
    iou = mask_iou(
        torch.zeros(num, 4, 5, dtype=torch.bool),
        torch.zeros(num_others, 4, 5, dtype=torch.bool))
    assert iou.shape == (num, num_others)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r'\(1, 4, 5\) and \(1, 5, 4\)'):
        mask_iou(
            torch.zeros(1, 4, 5, dtype=torch.bool),
            torch.zeros(1, 5, 4, dtype=torch.bool))
