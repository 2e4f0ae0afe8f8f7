# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData

from mmsemi.pseudo_labels import PseudoLabelQuality, measure_pseudo_labels
from mmsemi.structures.tensor_masks import TensorMasks

SHAPE = (20, 20)


def counts(quality):
    return quality.num_pseudo, quality.num_hidden, quality.num_matched


def test_ratios():
    quality = PseudoLabelQuality(8, 5, 2, 1.5)
    assert (quality.precision, quality.recall, quality.iou) == (.25, .4, .75)


def test_ratios_of_nothing_are_undefined():
    quality = PseudoLabelQuality()
    for value in (quality.precision, quality.recall, quality.iou):
        assert math.isnan(value)
    missed = PseudoLabelQuality(num_hidden=3)
    assert missed.recall == 0 and math.isnan(missed.precision)
    wrong = PseudoLabelQuality(num_pseudo=3)
    assert wrong.precision == 0 and math.isnan(wrong.recall)


def test_sum_over_images():
    total = PseudoLabelQuality(1, 2, 1, .75) + PseudoLabelQuality(3, 1, 1, .5)
    assert total == PseudoLabelQuality(4, 3, 2, 1.25)
    total += PseudoLabelQuality(0, 1)
    assert total == PseudoLabelQuality(4, 4, 2, 1.25)


def test_matches_by_hand(instances_factory):
    # IoU with the first hidden: 80 / 100; with the second: 50 / 100.
    pseudo = instances_factory(
        [[0, 0, 10, 8], [10, 10, 15, 20], [0, 10, 5, 15]], [0, 1, 0], SHAPE,
        [0.9, 0.8, 0.7])
    hidden = instances_factory([[0, 0, 10, 10], [10, 10, 20, 20]], [0, 1],
                               SHAPE)
    quality = measure_pseudo_labels(pseudo, hidden)
    assert counts(quality) == (3, 2, 2)
    assert quality.iou_sum == pytest.approx(1.3, abs=1e-6)
    strict = measure_pseudo_labels(pseudo, hidden, iou_thr=0.51)
    assert counts(strict) == (3, 2, 1)
    assert strict.iou_sum == pytest.approx(0.8, abs=1e-6)


def test_the_class_must_agree(instances_factory):
    pseudo = instances_factory([[0, 0, 10, 10]], [1], SHAPE, [0.9])
    hidden = instances_factory([[0, 0, 10, 10]], [0], SHAPE)
    assert counts(measure_pseudo_labels(pseudo, hidden)) == (1, 1, 0)


def test_one_hidden_instance_is_matched_once(instances_factory):
    pseudo = instances_factory([[0, 0, 10, 10]] * 3, [0] * 3, SHAPE,
                               [0.5, 0.9, 0.7])
    hidden = instances_factory([[0, 0, 10, 10]], [0], SHAPE)
    quality = measure_pseudo_labels(pseudo, hidden)
    assert counts(quality) == (3, 1, 1)
    assert quality.iou_sum == 1


def test_better_scores_choose_first(instances_factory):
    # By score, the loose one takes the only hidden instance, as in COCO.
    pseudo = instances_factory([[0, 0, 10, 10], [0, 0, 10, 6]], [0, 0], SHAPE,
                               [0.6, 0.9])
    hidden = instances_factory([[0, 0, 10, 10]], [0], SHAPE)
    quality = measure_pseudo_labels(pseudo, hidden)
    assert counts(quality) == (2, 1, 1)
    assert quality.iou_sum == pytest.approx(0.6, abs=1e-6)


def test_a_match_leaves_the_second_choice_to_others(instances_factory):
    hidden = instances_factory([[0, 0, 10, 10], [0, 0, 10, 8]], [0, 0], SHAPE)
    pseudo = instances_factory([[0, 0, 10, 10], [0, 0, 10, 10]], [0, 0], SHAPE,
                               [0.9, 0.8])
    quality = measure_pseudo_labels(pseudo, hidden)
    assert counts(quality) == (2, 2, 2)
    assert quality.iou_sum == pytest.approx(1.8, abs=1e-6)


@pytest.mark.parametrize('num_pseudo, num_hidden', [(0, 0), (0, 2), (2, 0)])
def test_empty_sides(instances_factory, num_pseudo, num_hidden):
    box = [0, 0, 4, 4]
    pseudo = instances_factory([box] * num_pseudo, [0] * num_pseudo, SHAPE,
                               [0.5] * num_pseudo)
    hidden = instances_factory([box] * num_hidden, [0] * num_hidden, SHAPE)
    quality = measure_pseudo_labels(pseudo, hidden)
    assert counts(quality) == (num_pseudo, num_hidden, 0)


@pytest.mark.parametrize('padding', [(0, 0), (4, 12)])
@pytest.mark.parametrize('container', ['tensor', 'bitmap', 'ours', 'polygon'])
def test_hidden_masks_of_any_kind(instances_factory, container, padding):
    pseudo = instances_factory([[0, 0, 10, 8]], [0], SHAPE, [0.9])
    shape = (SHAPE[0] + padding[0], SHAPE[1] + padding[1])
    hidden = instances_factory([[0, 0, 10, 10]], [0], shape)
    if container == 'bitmap':
        hidden.masks = BitmapMasks(hidden.masks.numpy().astype(np.uint8),
                                   *shape)
    elif container == 'ours':
        hidden.masks = TensorMasks(hidden.masks)
    elif container == 'polygon':
        square = np.array([0., 0, 10, 0, 10, 10, 0, 10])
        hidden.masks = PolygonMasks([[square]], *shape)
    quality = measure_pseudo_labels(pseudo, hidden)
    assert quality == PseudoLabelQuality(1, 1, 1, pytest.approx(0.8))


@pytest.mark.parametrize('box_type', [lambda boxes: boxes, HorizontalBoxes])
def test_boxes_serve_where_masks_are_missing(instances_factory, box_type):
    pseudo = instances_factory([[0, 0, 10, 8]], [0], SHAPE, [0.9])
    hidden = instances_factory([[0, 0, 10, 10]], [0], SHAPE)
    # Masks that disagree with the boxes show which of the two is compared.
    pseudo.masks[:] = False
    assert measure_pseudo_labels(pseudo, hidden).num_matched == 0
    del hidden.masks
    hidden.bboxes = box_type(hidden.bboxes)
    quality = measure_pseudo_labels(pseudo, hidden)
    assert quality == PseudoLabelQuality(1, 1, 1, pytest.approx(0.8))


def test_the_input_stays_as_it_is(instances_factory):
    pseudo = instances_factory([[0, 0, 4, 4], [8, 8, 12, 12]], [0, 1], SHAPE,
                               [0.2, 0.9])
    hidden = instances_factory([[0, 0, 4, 4]], [0], SHAPE)
    before = pseudo.scores.clone(), pseudo.masks.clone(), hidden.masks.clone()
    measure_pseudo_labels(pseudo, hidden)
    assert before[0].equal(pseudo.scores)
    assert before[1].equal(pseudo.masks)
    assert before[2].equal(hidden.masks)


def test_missing_hidden_labels_are_an_error(instances_factory):
    pseudo = instances_factory([[0, 0, 4, 4]], [0], SHAPE, [0.9])
    with pytest.raises(ValueError, match='hidden_label_interval=0'):
        measure_pseudo_labels(pseudo, InstanceData())


@pytest.mark.parametrize('iou_thr', [0, -0.5, 1.01, math.nan])
def test_bad_thresholds(instances_factory, iou_thr):
    label = instances_factory([], [], SHAPE, [])
    with pytest.raises(ValueError, match='iou_thr'):
        measure_pseudo_labels(label, label, iou_thr=iou_thr)


def test_a_perfect_match_at_threshold_one(instances_factory):
    label = instances_factory([[1, 2, 9, 13]], [2], SHAPE, [0.1])
    quality = measure_pseudo_labels(label, label, iou_thr=1)
    assert quality == PseudoLabelQuality(1, 1, 1, 1.)
    assert isinstance(quality.iou_sum, float)
    assert torch.is_tensor(label.masks)


@pytest.mark.parametrize('with_masks', [True, False])
def test_crowd_regions_are_no_false_alarms(instances_factory, with_masks):
    """In a crowd of its class, in one of another class, and matched."""
    found = instances_factory(
        [[0, 0, 4, 4], [0, 10, 4, 14], [10, 0, 14, 4]], [0, 1, 0], SHAPE,
        [.9, .8, .7])
    hidden = instances_factory([[10, 0, 14, 4]], [0], SHAPE)
    crowd = instances_factory([[0, 0, 20, 20]], [0], SHAPE)
    if not with_masks:
        for instances in (found, hidden, crowd):
            del instances.masks
    assert counts(measure_pseudo_labels(found, hidden)) == (3, 1, 1)
    assert counts(measure_pseudo_labels(found, hidden, crowd)) == (2, 1, 1)
    nothing = hidden[:0]
    assert counts(measure_pseudo_labels(found, nothing, crowd)) == (1, 0, 0)
    # Half of the first lies outside of this crowd.
    partial = instances_factory([[2, 0, 20, 20]], [0], SHAPE)
    if not with_masks:
        del partial.masks
    assert counts(measure_pseudo_labels(found, hidden, partial)) == (2, 1, 1)
    assert counts(
        measure_pseudo_labels(found, hidden, partial,
                              iou_thr=.6)) == (3, 1, 1)
