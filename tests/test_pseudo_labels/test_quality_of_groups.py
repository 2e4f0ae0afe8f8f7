# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import pytest
import torch

from mmsemi.pseudo_labels import (PseudoLabelQuality, judge_predictions,
                                  measure_pseudo_labels, quality_of_groups)

SHAPE = (20, 20)
GROUPS = [0, 1, 1, 2]


@pytest.fixture
def images(instances_factory):
    """list: Predictions, truth and crowd of two images."""
    truth = instances_factory(
        [[0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20]], [0, 1, 2], SHAPE)
    # Right by .8; right; a duplicate; class 3 for 2; in a crowd.
    found = instances_factory(
        [[0, 0, 10, 8], [10, 0, 20, 10], [10, 0, 20, 10], [0, 10, 10, 20],
         [12, 12, 18, 18]], [0, 1, 1, 3, 2], SHAPE, [.9, .8, .4, .7, .6])
    crowd = instances_factory([[10, 10, 20, 20]], [2], SHAPE)
    return [(found, truth, crowd), (found[:1], truth[:0], None)]


def test_reference_values(images):
    outcomes = [judge_predictions(*image) for image in images]
    rare, common, frequent = quality_of_groups(outcomes, GROUPS)
    assert rare == PseudoLabelQuality(2, 1, 1, pytest.approx(.8))
    assert common == PseudoLabelQuality(2, 2, 1, 1.)
    assert frequent == PseudoLabelQuality(1, 0, 0, 0.)
    assert (rare.precision, rare.recall) == (.5, 1.)
    assert (common.precision, common.recall) == (.5, .5)
    assert frequent.precision == 0 and math.isnan(frequent.recall)


@pytest.mark.parametrize('thr', [0., .5, .75, .95])
def test_thresholds_equal_a_filter(images, thr):
    outcomes = [judge_predictions(*image) for image in images]
    total = PseudoLabelQuality()
    for quality in quality_of_groups(outcomes, GROUPS, thr):
        total += quality
    expected = PseudoLabelQuality()
    for found, truth, crowd in images:
        expected += measure_pseudo_labels(found[found.scores > thr], truth,
                                          crowd)
    expected.iou_sum = pytest.approx(expected.iou_sum)
    assert total == expected


def test_thresholds_by_class(images):
    outcomes = [judge_predictions(*images[0])]
    thr = torch.tensor([.9, .5, .5, .5])
    rare, common, frequent = quality_of_groups(outcomes, GROUPS, thr)
    # Kept is what scores strictly more.
    assert rare == PseudoLabelQuality(0, 1, 0, 0.)
    assert common == PseudoLabelQuality(1, 2, 1, 1.)
    assert frequent == PseudoLabelQuality(1, 0, 0, 0.)


def test_no_images_and_groups_without_classes():
    nothing = PseudoLabelQuality(0, 0, 0, 0.)
    assert quality_of_groups([], GROUPS) == [nothing] * 3
    assert quality_of_groups([], GROUPS, num_groups=4) == [nothing] * 4
