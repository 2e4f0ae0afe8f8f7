# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch

from mmsemi.pseudo_labels import FilterByScore, frequency_thresholds

SCORES = torch.tensor([.95, .9, .8, .6, .55, .3])


def test_reference_value():
    """.75 instances per image: three of four images are wanted."""
    thr = frequency_thresholds(SCORES, torch.zeros(6).long(), 4, [75], 100)
    assert thr.tolist() == pytest.approx([.6])
    stage = FilterByScore(1., thr.tolist())
    kept = SCORES > stage.thresholds(torch.zeros(6).long(), SCORES)
    assert SCORES[kept].tolist() == SCORES[:3].tolist()


def test_each_class_has_its_own():
    scores = torch.cat([SCORES, SCORES, SCORES[:2]])
    labels = torch.tensor([0] * 6 + [2] * 6 + [3] * 2)
    thr = frequency_thresholds(scores, labels, 4, [3, 1, 5, 7, 0], 4)
    # Class 1 has too few anyway, 3 as well; 4 shall have none.
    assert thr.tolist() == pytest.approx([.6, .1, .3, .1, 1.])
    order = torch.randperm(14)
    assert frequency_thresholds(scores[order], labels[order], 4,
                                torch.tensor([3, 1, 5, 7, 0]), 4).equal(thr)


def test_equal_scores_go_together():
    scores = torch.tensor([.7, .7, .7, .2])
    thr = frequency_thresholds(scores, torch.zeros(4).long(), 1, [2], 1)
    assert thr.tolist() == pytest.approx([.7])


def test_other_grids_and_no_predictions():
    nothing = torch.zeros(0)
    assert frequency_thresholds(nothing,
                                nothing.long(), 1, [2, 2], 1,
                                low=.3).tolist() == pytest.approx([.3, .3])
    thr = frequency_thresholds(
        SCORES, torch.zeros(6).long(), 4, [3], 4, low=.5, steps=10)
    assert thr.tolist() == pytest.approx([.6])
    # A score of 1 is never strictly above.
    sure = torch.ones(3)
    assert frequency_thresholds(sure,
                                torch.zeros(3).long(), 1, [1],
                                1).tolist() == [1.]


@pytest.mark.parametrize('changes, message', [
    (dict(num_images=0), 'num_images=0'),
    (dict(num_true_images=0), 'num_true_images=0'),
    (dict(low=1.5), 'low=1.5'),
])
def test_bad_arguments(changes, message):
    given = dict(
        scores=SCORES,
        labels=torch.zeros(6).long(),
        num_images=4,
        true_counts=[3],
        num_true_images=4)
    with pytest.raises(ValueError, match=message):
        frequency_thresholds(**{**given, **changes})
