# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import numpy as np
import pytest
import torch

from mmsemi.structures.confusion_matrix import ConfusionMatrix, unique_names

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
