# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks

from mmsemi.pseudo_labels import (calibration_error, collect_statistics,
                                  instance_overlaps, judge_predictions)

SHAPE = (20, 20)


@pytest.fixture
def make(instances_factory):
    """callable: Instances from boxes, labels and scores."""

    def build(boxes, labels, scores=None):
        return instances_factory(boxes, labels, SHAPE, scores)

    return build


def values(found, kind='match'):
    outcomes, counted = found.outcomes(kind)
    assert outcomes.dtype == torch.float32 and counted.dtype == torch.bool
    return [
        round(outcome, 4) if count else None
        for outcome, count in zip(outcomes.tolist(), counted.tolist())
    ]


def test_kinds_of_outcome(make):
    """IoU .8, none, .75 (twice), .6 with another class, .75 with no room."""
    found = judge_predictions(
        make([[0, 0, 10, 8], [15, 15, 20, 20], [10, 0, 20, 9],
              [0, 10, 10, 16], [0, 0, 10, 6]], [0, 0, 1, 0, 0],
             [.9, .8, .7, .6, .5]),
        make([[0, 0, 10, 10], [10, 0, 20, 12], [0, 10, 10, 20]], [0, 1, 2]))
    assert found.matches.tolist() == [0, -1, 1, -1, -1]
    assert values(found) == [1, 0, 1, 0, 0]
    assert values(found, 'iou') == [.8, 0, .75, 0, 0]
    # One near nothing does not count; a duplicate has the right class.
    assert values(found, 'class') == [1, None, 1, 0, 1]
    assert found.true_labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="kind='box'"):
        found.outcomes('box')


def test_signed_errors_of_two_kinds(make):
    found = judge_predictions(
        make([[0, 0, 10, 8], [15, 15, 20, 20], [10, 0, 20, 9],
              [0, 10, 10, 16]], [0] * 4, [.9, .8, .7, .9]),
        make([[0, 0, 10, 10], [10, 0, 20, 12], [0, 10, 10, 20]], [0] * 3))
    assert values(found, 'iou') == [.8, 0, .75, .6]
    for kind, expected in (('iou', -.2875), ('match', -.075)):
        outcomes, _ = found.outcomes(kind)
        error = calibration_error(
            collect_statistics(found.scores, found.labels, outcomes, 1),
            signed=True)
        assert float(error) == pytest.approx(expected)


def test_average_precision_error_of_iou():
    """LaECE_0 of two classes; the second is perfect and counts as 0."""
    statistics = collect_statistics(
        torch.tensor([.9, .6, .5]), torch.tensor([0, 0, 1]),
        torch.tensor([.8, 0, .5]), 2, 25)
    error = calibration_error(statistics)
    assert error.tolist() == pytest.approx([.35, 0])
    assert float(error.nanmean()) == pytest.approx(.175)


def test_duplicates_are_wrong_and_better_scores_choose_first(make):
    box = [0, 0, 10, 10]
    found = judge_predictions(
        make([box] * 3, [0] * 3, [.5, .9, .7]), make([box], [0]))
    assert values(found) == [0, 1, 0]
    tied = judge_predictions(
        make([box] * 3, [0] * 3, [.5, .5, .5]), make([box], [0]))
    assert values(tied) == [1, 0, 0]


def test_lower_scores_do_not_change_matches(make):
    """So a threshold can be set after matching."""
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 12, (60, 2))
    boxes = np.concatenate([corners, corners + 8], 1).tolist()
    labels = generator.integers(0, 2, 60).tolist()
    predictions = make(boxes, labels, generator.random(60).tolist())
    truth = make(boxes[:15], labels[:15])
    every = judge_predictions(predictions, truth, iou_thr=.4)
    kept = predictions.scores > .5
    some = judge_predictions(predictions[kept], truth, iou_thr=.4)
    assert every.matches[kept].equal(some.matches)
    assert every.ious[kept].equal(some.ious)
    assert 5 < (some.matches >= 0).sum() < (every.matches >= 0).sum()


def test_any_overlap_is_enough_at_zero(make):
    found = judge_predictions(
        make([[0, 0, 10, 10], [15, 15, 20, 20]], [0, 0], [.9, .8]),
        make([[9, 9, 14, 14]], [0]),
        iou_thr=0)
    assert values(found, 'iou') == [round(1 / 124, 4), 0]
    assert values(found) == [1, 0]


@pytest.mark.parametrize('num, num_true', [(0, 0), (0, 2), (2, 0)])
def test_empty_sides(make, num, num_true):
    box = [0, 0, 4, 4]
    found = judge_predictions(
        make([box] * num, [0] * num, [.5] * num),
        make([box] * num_true, [0] * num_true),
        make([box], [1]),
        negative_labels=[0])
    for kind in ('match', 'iou'):
        assert values(found, kind) == [0] * num
    assert values(found, 'class') == [None] * num
    assert len(found.true_labels) == num_true


def test_true_masks_of_nothing_may_have_any_size(make):
    nothing = make([], [])
    nothing.masks = BitmapMasks(np.zeros((0, 7, 9), np.uint8), 7, 9)
    found = judge_predictions(
        make([[0, 0, 4, 4]], [0], [.9]), nothing, nothing)
    assert values(found) == [0]


@pytest.mark.parametrize('with_masks', [True, False])
def test_crowd_regions(make, with_masks):
    """In a crowd, beside it by more than half, another class, matched."""
    predictions = make(
        [[0, 0, 4, 4], [8, 0, 14, 4], [0, 8, 4, 12], [4, 4, 8, 8]],
        [0, 0, 1, 0], [.9, .8, .7, .6])
    truth = make([[4, 4, 8, 8]], [0])
    crowd = make([[0, 0, 10, 20]], [0])
    if not with_masks:
        for instances in (predictions, truth, crowd):
            del instances.masks
    found = judge_predictions(predictions, truth, crowd)
    assert values(found) == [None, 0, 0, 1]
    assert values(found, 'iou') == [None, 0, 0, 1]
    loose = judge_predictions(predictions, truth, crowd, crowd_thr=.3)
    assert values(loose) == [None, None, 0, 1]
    nothing = judge_predictions(predictions[:2], truth[:0],
                                make([[0, 0, 20, 20]], [0]))
    assert values(nothing) == [None, None]


@pytest.mark.parametrize('kind_of_list', [list, tuple, np.array,
                                          torch.tensor])
def test_federated_labels(make, kind_of_list):
    """Class 3 is not there, 1 is there but not all of it, 2 is unknown."""
    predictions = make([[0, 0, 4, 4]] * 3 + [[10, 10, 14, 14]], [3, 1, 2, 1],
                       [.9, .8, .7, .6])
    truth = make([[10, 10, 14, 14]], [1])
    found = judge_predictions(
        predictions,
        truth,
        negative_labels=kind_of_list([3]),
        not_exhaustive_labels=kind_of_list([1]))
    assert values(found) == [0, None, None, 1]
    # Searched for completely.
    found = judge_predictions(
        predictions, truth, negative_labels=kind_of_list([3]))
    assert values(found) == [0, 0, None, 1]
    assert values(judge_predictions(predictions, truth)) == [0, 0, 0, 1]


def test_federated_images_without_negatives(make):
    found = judge_predictions(
        make([[0, 0, 4, 4]], [3], [.9]), make([], []), negative_labels=[])
    assert values(found) == [None]


def test_class_of_federated_predictions(make):
    """On an instance of class 1: class 2 is unknown, 3 is certainly wrong."""
    box = [10, 10, 14, 14]
    found = judge_predictions(
        make([box] * 3, [1, 2, 3], [.9, .8, .7]),
        make([box], [1]),
        negative_labels=[3])
    assert values(found, 'class') == [1, None, 0]


def test_known_overlaps_are_used(make):
    predictions = make([[0, 0, 4, 4]] * 2, [0, 0], [.9, .8])
    truth = make([[10, 10, 14, 14]], [0])
    found = judge_predictions(
        predictions,
        truth,
        truth,
        overlaps=torch.tensor([[0.], [.7]]),
        crowd_shares=torch.tensor([[.6], [.6]]))
    assert values(found, 'iou') == [None, .7]


@pytest.mark.parametrize('box_type', [lambda boxes: boxes, HorizontalBoxes])
def test_overlaps(make, box_type):
    predictions = make([[0, 0, 10, 8], [0, 0, 20, 20]], [0, 0], [.9, .8])
    others = make([[0, 0, 10, 10]], [0])
    expected = [[.8], [.25]]
    assert instance_overlaps(predictions, others).allclose(
        torch.tensor(expected))
    assert instance_overlaps(
        predictions, others, iscrowd=True).allclose(
            torch.tensor([[1.], [.25]]))
    del others.masks
    others.bboxes = box_type(others.bboxes)
    assert instance_overlaps(predictions, others).allclose(
        torch.tensor(expected))


@pytest.mark.parametrize('settings', [
    dict(iou_thr=-.1),
    dict(iou_thr=1.1),
    dict(iou_thr=math.nan),
    dict(crowd_thr=0),
    dict(crowd_thr=1.1),
])
def test_bad_thresholds(make, settings):
    nothing = make([], [], [])
    with pytest.raises(ValueError, match=f'{next(iter(settings))}='):
        judge_predictions(nothing, nothing, **settings)
