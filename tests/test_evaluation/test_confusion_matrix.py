# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import numpy as np
import pytest
import torch

from mmsemi.evaluation import (ConfusionMatrix, boundary_overlaps,
                               draw_confusion_matrix, mask_boundary)
from mmsemi.evaluation.boundary_iou import boundary_width
from mmsemi.evaluation.confusion_matrix import unique_names

# Reference T12: five classes, of which the fourth is only predicted and the
# fifth occurs nowhere; one pixel is ignored.
TRUTH = torch.tensor([[0, 0, 1, 1], [0, 2, 1, 255], [2, 2, 1, 0]])
PREDICTION = torch.tensor([[0, 0, 1, 2], [0, 2, 2, 1], [1, 2, 1, 3]])


def test_reference_values():
    matrix = ConfusionMatrix(5).update(PREDICTION, TRUTH)
    metrics = matrix.metrics()
    assert metrics['PA'] == pytest.approx(63.6363636363)
    assert metrics['MA'] == pytest.approx(63.8888888888)
    assert metrics['mIoU'] == pytest.approx(38.75)
    assert metrics['FWIoU'] == pytest.approx(52.7272727272)
    iou = [metrics[f'IoU/{i}'] for i in range(5)]
    assert iou[:4] == pytest.approx([75., 40., 40., 0.])
    accuracy = [metrics[f'Acc/{i}'] for i in range(5)]
    assert accuracy[:3] == pytest.approx([75., 50., 200 / 3])
    assert math.isnan(iou[4])
    assert math.isnan(accuracy[3]) and math.isnan(accuracy[4])
    assert len(metrics) == 14


def test_reference_values_with_absent_classes_as_zero():
    matrix = ConfusionMatrix(5, absent='zero').update(PREDICTION, TRUTH)
    metrics = matrix.metrics()
    assert metrics['mIoU'] == pytest.approx(31.)
    assert metrics['IoU/4'] == metrics['Acc/4'] == 0.
    assert metrics['MA'] == pytest.approx((75 + 50 + 200 / 3) / 5)
    # The others do not depend on it.
    assert metrics['PA'] == pytest.approx(63.6363636363)
    assert metrics['FWIoU'] == pytest.approx(52.7272727272)


def test_rows_are_true_classes():
    matrix = ConfusionMatrix(5).update(PREDICTION, TRUTH)
    assert matrix.matrix.tolist() == [[3, 0, 0, 1, 0], [0, 2, 2, 0, 0],
                                      [0, 1, 2, 0, 0], [0] * 5, [0] * 5]
    assert matrix.counts.dtype == torch.long
    assert matrix.num_pixels == 11


@pytest.mark.parametrize('label', [3, 255, -1])
def test_predictions_without_class_are_wrong(label):
    """They count in the true class's row, and in no predicted class."""
    prediction = PREDICTION.where(PREDICTION != 3, label)
    # Under an ignored pixel it does not matter.
    prediction[1, 3] = label
    matrix = ConfusionMatrix(3).update(prediction, TRUTH)
    assert matrix.counts.tolist() == [[3, 0, 0, 1], [0, 2, 2, 0], [0, 1, 2, 0]]
    metrics = matrix.metrics()
    assert metrics['PA'] == pytest.approx(63.6363636363)
    assert metrics['IoU/0'] == pytest.approx(75.)
    assert metrics['mIoU'] == pytest.approx((75 + 40 + 40) / 3)


@pytest.mark.parametrize('label', [5, 254, -1])
def test_truth_without_class_is_refused(label):
    truth = TRUTH.where(TRUTH != 0, label)
    matrix = ConfusionMatrix(5)
    with pytest.raises(ValueError, match=rf'labels \[{label}\]; allowed are '
                       '0 to 4 and ignore_index=255'):
        matrix.update(PREDICTION, truth)
    assert matrix.num_pixels == 0


def test_ignored_label_can_be_another():
    matrix = ConfusionMatrix(3, ignore_index=0)
    matrix.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]))
    assert matrix.matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize('convert', [
    lambda x: x.to(torch.uint8), lambda x: x.to(torch.int32),
    lambda x: x.numpy(), lambda x: x.numpy().astype(np.uint8),
    lambda x: x.numpy().astype(np.uint16), lambda x: x.flatten()
])
def test_any_integers_do(convert):
    matrix = ConfusionMatrix(5).update(convert(PREDICTION), convert(TRUTH))
    assert matrix.metrics()['mIoU'] == pytest.approx(38.75)


def test_updates_and_merges_add_up():
    whole = ConfusionMatrix(5).update(PREDICTION, TRUTH)
    rows = [
        ConfusionMatrix(5).update(p, t) for p, t in zip(PREDICTION, TRUTH)
    ]
    merged = rows[0].merge(rows[1]).merge(rows[2])
    assert merged is rows[0]
    assert torch.equal(merged.counts, whole.counts)
    assert rows[1].num_pixels == 3
    updated = ConfusionMatrix(5)
    for p, t in zip(PREDICTION, TRUTH):
        updated.update(p, t)
    assert torch.equal(updated.counts, whole.counts)


def test_different_matrices_do_not_merge():
    with pytest.raises(ValueError, match='num_classes, but these have 3 and'):
        ConfusionMatrix(3).merge(ConfusionMatrix(4))
    with pytest.raises(ValueError, match='ignore_index'):
        ConfusionMatrix(3).merge(ConfusionMatrix(3, ignore_index=0))


def test_counts_are_exact_above_float32():
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**53 - 1
    matrix.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert matrix.counts[0].tolist() == [2**53, 1, 0]


def test_nothing_counted_is_nan():
    for absent in ('nan', 'zero'):
        metrics = ConfusionMatrix(2, absent=absent).metrics()
        assert math.isnan(metrics['PA']) and math.isnan(metrics['FWIoU'])
    assert metrics['mIoU'] == metrics['MA'] == 0.
    matrix = ConfusionMatrix(2).update(torch.tensor([1]), torch.tensor([255]))
    assert math.isnan(matrix.metrics()['mIoU'])
    matrix.update(torch.zeros((0, 4)).long(), torch.zeros((0, 4)).long())
    assert matrix.num_pixels == 0


def test_names_of_classes():
    matrix = ConfusionMatrix(2).update(torch.tensor([0]), torch.tensor([0]))
    assert matrix.metrics(('cat', 'dog'))['IoU/cat'] == 100.
    with pytest.raises(ValueError, match='1 names of classes were given for'):
        matrix.metrics(['cat'])
    assert unique_names(['door', 'cat', 'door'],
                        3) == ['door', 'cat', 'door (2)']


@pytest.mark.parametrize('arguments, error, message', [
    (dict(num_classes=0), ValueError, 'num_classes=0 must be above 0'),
    (dict(num_classes=2.), TypeError, 'num_classes=2.0 must be an integer'),
    (dict(num_classes=2, ignore_index=None), TypeError, 'ignore_index=None'),
    (dict(num_classes=2, absent='skip'), ValueError, "absent='skip'"),
])
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ConfusionMatrix(**arguments)


def test_wrong_maps():
    matrix = ConfusionMatrix(5)
    with pytest.raises(ValueError, match=r'size \(3, 4\) and the truth '
                       r'\(1, 3, 4\)'):
        matrix.update(PREDICTION, TRUTH[None])
    with pytest.raises(TypeError, match='prediction must hold integers'):
        matrix.update(PREDICTION.float(), TRUTH)


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
