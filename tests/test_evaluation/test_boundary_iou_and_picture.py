# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch

from mmsemi.evaluation import (boundary_overlaps, draw_confusion_matrix,
                               mask_boundary)
from mmsemi.evaluation.boundary_iou import boundary_width

# Boundaries ---------------------------------------------------------------


def slow_boundary(mask, distance):
    """By the definition: a pixel outside of the mask is near."""
    padded = np.pad(mask, distance)
    found = np.zeros_like(mask)
    for y, x in zip(*mask.nonzero()):
        found[y, x] = not padded[y:y + 2 * distance + 1,
                                 x:x + 2 * distance + 1].all()
    return found


@pytest.mark.parametrize('distance', [1, 2, 4])
def test_boundary_of_a_mask(distance):
    mask = np.random.default_rng(0).random((17, 23)) > 0.02
    mask[2:9, 3:20] = True
    boundary = mask_boundary(mask, distance)
    assert boundary.dtype == bool
    assert (boundary == slow_boundary(mask, distance)).all()
    full = mask_boundary(np.ones((9, 9), bool), distance)
    assert full.sum() == 81 - max(9 - 2 * distance, 0)**2


def test_width_of_boundaries():
    # The diagonal of 300 x 400 pixels is 500.
    assert boundary_width(300, 400, 0.02) == 10
    assert boundary_width(3, 4, 0.02) == 1
    assert boundary_width(1024, 2048, 0.02) == 46


def test_boundary_overlaps_by_hand():
    """A square of 6, predicted one pixel to the right; boundaries of 1."""
    truth = torch.zeros((10, 10), dtype=torch.long)
    truth[2:8, 1:7] = 1
    prediction = truth.roll(1, 1)
    overlap, union = boundary_overlaps(prediction, truth, 3)
    # Rings of 20 pixels that share 5 above and 5 below.
    assert overlap.tolist()[1:] == [10, 0]
    assert union.tolist()[1:] == [30, 0]
    same, union = boundary_overlaps(truth, truth, 3)
    assert torch.equal(same, union) and union[1] == 20


def test_ignored_pixels_make_no_boundary():
    truth = torch.zeros((10, 10), dtype=torch.long)
    truth[:, 5:] = 255
    overlap, union = boundary_overlaps(torch.zeros_like(truth), truth, 2)
    # Left, upper and lower border of 10 x 5 pixels; not the right one.
    assert overlap.tolist() == union.tolist() == [18, 0]
    overlap, union = boundary_overlaps(
        torch.full_like(truth, 9), truth, 2)
    assert overlap.tolist() == [0, 0] and union.tolist() == [18, 0]


# The picture --------------------------------------------------------------


@pytest.mark.parametrize('num_classes', [1, 5, 40])
def test_picture(tmp_path, num_classes):
    counts = torch.randint(0, 9, (num_classes, num_classes + 1))
    counts[0] = 0
    path = tmp_path / 'deep' / 'matrix.png'
    draw_confusion_matrix(counts, [str(i) for i in range(num_classes)], path)
    assert path.read_bytes().startswith(b'\x89PNG')


def test_picture_of_class_without_predictions(tmp_path):
    counts = torch.tensor([[2, 0, 0], [1, 3, 0]])
    with_none = counts.clone()
    with_none[0, 2] = 1
    for name, matrix in dict(a=counts, b=with_none).items():
        draw_confusion_matrix(matrix, ['cat', 'dog'], tmp_path / f'{name}.svg')
    texts = [(tmp_path / f'{name}.svg').read_text() for name in 'ab']
    assert ['no class' in text for text in texts] == [False, True]
