# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import pytest
import torch
from mmengine.structures import InstanceData

from mmsemi.pseudo_labels import (FilterByArea, FilterByMaskCells,
                                  FilterByMaskQuality, FilterByScore,
                                  KeepTopScores, RemoveDuplicates,
                                  SkipUncertainImages)
from mmsemi.pseudo_labels.instance_filters import InstanceFilter

SHAPE = (20, 20)

# One of every stage, for what must hold for all.
STAGES = [
    FilterByScore(0.5),
    FilterByScore(0.5, {1: 0.2}),
    FilterByArea(4, 300),
    FilterByMaskCells(1, 2),
    FilterByMaskQuality(min_mask_score=0.5, min_box_iou=0.5),
    RemoveDuplicates(),
    RemoveDuplicates(class_agnostic=False),
    KeepTopScores(2),
    SkipUncertainImages(0.3, 0.5),
]


def run(stage, label):
    """Return the result of a stage on one image."""
    result, = stage([label], [None])
    return result


def scored(scores, labels=None):
    """Return instances without masks or areas of interest."""
    return InstanceData(
        bboxes=torch.zeros(len(scores), 4),
        labels=torch.tensor(labels or [0] * len(scores), dtype=torch.long),
        scores=torch.tensor(scores, dtype=torch.float32))


def boxed(boxes):
    """Return instances with boxes alone."""
    return InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float32))


def example(instances_factory):
    label = instances_factory(
        [[0, 0, 10, 10], [0, 0, 10, 9], [10, 10, 12, 11], [12, 12, 18, 18]],
        [0, 1, 1, 2], SHAPE, [0.6, 0.9, 0.4, 0.6])
    label.mask_scores = torch.tensor([0.9, 0.4, 0.8, 0.5])
    label.soft_labels = torch.eye(4)
    label.set_metainfo(dict(num_predicted=4))
    return label


# What holds for every stage ------------------------------------------------


@pytest.mark.parametrize('stage', STAGES, ids=repr)
def test_empty_input(stage, instances_factory):
    label = example(instances_factory)[:0]
    result = run(stage, label)
    assert len(result) == 0
    assert set(result.keys()) == set(label.keys())
    assert result.masks.shape == (0, *SHAPE)
    assert result.bboxes.shape == (0, 4)
    assert stage([], []) == []


@pytest.mark.parametrize('stage', STAGES, ids=repr)
def test_the_input_and_its_meta_information_stay(stage, instances_factory):
    label = example(instances_factory)
    before = label.clone()
    result = run(stage, label)
    assert result.num_predicted == 4
    assert result is not label
    assert label.metainfo == dict(num_predicted=4)
    for key, value in before.items():
        assert value.equal(label[key])


@pytest.mark.parametrize('stage', STAGES, ids=repr)
def test_images_do_not_mix(stage, instances_factory):
    first = example(instances_factory)
    second = first[torch.tensor([3, 2])]
    batch = stage([first, first[:0], second], [None] * 3)
    for got, alone in zip(batch, (first, first[:0], second)):
        expected = run(stage, alone)
        assert got.metainfo == expected.metainfo
        for key, value in expected.items():
            assert value.equal(got[key])


@pytest.mark.parametrize('stage', STAGES, ids=repr)
def test_fields_are_filtered_together(stage, instances_factory):
    label = example(instances_factory)
    label.marks = torch.arange(4)
    result = run(stage, label)
    for key, value in label[result.marks].items():
        assert value.equal(result[key])


def test_a_filter_must_say_what_it_keeps():
    with pytest.raises(TypeError, match='keep'):
        InstanceFilter()


# FilterByScore -------------------------------------------------------------


def test_score_threshold_is_exclusive():
    # 0.5 is exact in floating point.
    label = scored([0.5, 0.25, 0.75, math.nextafter(0.5, 0), 0.500001])
    assert FilterByScore(0.5).keep(label).tolist() == [
        False, False, True, False, True
    ]


def test_score_threshold_of_zero_drops_zeros_and_one_drops_all():
    label = scored([0., 1e-6, 1.])
    assert FilterByScore(0).keep(label).tolist() == [False, True, True]
    assert FilterByScore(1.).keep(label).tolist() == [False] * 3
    assert len(run(FilterByScore(1), label)) == 0


@pytest.mark.parametrize('key_type', [int, str])
def test_class_thresholds_by_mapping(key_type):
    label = scored([0.6] * 5, [0, 1, 2, 3, 4])
    stage = FilterByScore(0.5, {key_type(1): 0.75, 3: 0.1})
    assert stage.thresholds(label.labels, label.scores).equal(
        torch.tensor([0.5, 0.75, 0.5, 0.1, 0.5]))
    assert stage.keep(label).tolist() == [True, False, True, True, True]


def test_class_thresholds_by_sequence():
    label = scored([0.6] * 5, [2, 1, 0, 1, 7])
    stage = FilterByScore(0.5, [0.1, 0.7, 0.6])
    # Strictly more than 0.6 is asked of class 2, the default of class 7.
    assert stage.keep(label).tolist() == [False, False, True, False, True]


def test_score_threshold_may_change_during_training():
    stage = FilterByScore(0.5, {1: 0.2})
    stage.score_thr = 0.7
    label = scored([0.6, 0.6], [0, 1])
    assert stage.keep(label).tolist() == [False, True]


def test_half_precision_scores():
    label = scored([0.3, 0.6])
    label.scores = label.scores.half()
    stage = FilterByScore(0.5, {4: 0.9})
    assert stage.keep(label).tolist() == [False, True]


@pytest.mark.parametrize('score_thr', [-0.1, 1.1, math.nan, '0.5', None])
def test_bad_score_thresholds(score_thr):
    with pytest.raises(ValueError, match='FilterByScore.score_thr='):
        FilterByScore(score_thr)


@pytest.mark.parametrize('thresholds, message', [
    ([0.5, 1.5], r'class_score_thr\[1\]=1.5'),
    ({7: -1}, r'class_score_thr\[7\]=-1'),
    ({-1: 0.5}, 'class index -1'),
])
def test_bad_class_thresholds(thresholds, message):
    with pytest.raises(ValueError, match=message):
        FilterByScore(0.5, thresholds)


# FilterByArea --------------------------------------------------------------


def test_area_of_masks_limits_included(instances_factory):
    label = instances_factory(
        [[0, 0, 2, 2], [0, 0, 3, 1], [0, 0, 5, 5], [0, 0, 13, 2]], [0] * 4,
        SHAPE)
    # The boxes would give other areas.
    label.bboxes = torch.zeros(4, 4)
    assert FilterByArea(4).keep(label).tolist() == [True, False, True, True]
    assert FilterByArea(4, 25).keep(label).tolist() == [
        True, False, True, False
    ]


def test_area_default_drops_empty_masks_only(instances_factory):
    label = instances_factory([[0, 0, 0, 0], [0, 0, 1, 1]], [0, 0], SHAPE)
    assert FilterByArea().keep(label).tolist() == [False, True]
    assert FilterByArea(0).keep(label).tolist() == [True, True]


def test_area_of_boxes():
    # 4, 2.25, and two turned inside out, whose sides multiply to 4 and -4.
    label = boxed([[0, 0, 2, 2], [0, 0, 1.5, 1.5], [2, 2, 0, 0], [2, 0, 0, 2]])
    assert FilterByArea(2.25).keep(label).tolist() == [
        True, True, False, False
    ]
    assert FilterByArea(2.26).keep(label).tolist() == [
        True, False, False, False
    ]


@pytest.mark.parametrize('min_area, max_area', [(-1, None), (5, 4),
                                                (math.nan, None),
                                                (1, math.nan), ('4', None),
                                                (1, '9')])
def test_bad_areas(min_area, max_area):
    with pytest.raises(ValueError, match='0 <= min_area <= max_area'):
        FilterByArea(min_area, max_area)


# FilterByMaskCells ---------------------------------------------------------


def test_cells_at_the_limit_go(instances_factory):
    # 80 and 81 pixels are 5 cells of 4 x 4, and a sixteenth more.
    label = instances_factory(
        [[0, 0, 8, 10], [0, 0, 9, 9], [0, 0, 0, 0], [0, 0, 20, 20]], [0] * 4,
        SHAPE)
    # Boxes play no role.
    label.bboxes = torch.zeros(4, 4)
    assert FilterByMaskCells().keep(label).tolist() == [
        False, True, False, True
    ]
    assert FilterByMaskCells(5, 4).requires == ('masks', )
    assert FilterByMaskCells(20, 2).keep(label).tolist() == [
        False, True, False, True
    ]
    assert FilterByMaskCells(0, 32).keep(label).tolist() == [
        True, True, False, True
    ]
    assert FilterByMaskCells(80.5, 1).keep(label).tolist() == [
        False, True, False, True
    ]


@pytest.mark.parametrize('settings, message', [
    (dict(min_cells=-1), 'min_cells=-1; allowed are finite'),
    (dict(min_cells=math.nan), 'min_cells=nan'),
    (dict(min_cells=math.inf), 'min_cells=inf'),
    (dict(min_cells='5'), "min_cells='5'"),
    (dict(stride=0), 'stride=0; allowed are whole numbers from 1'),
    (dict(stride=4.), 'stride=4.0'),
    (dict(stride=True), 'stride=True'),
])
def test_bad_cells(settings, message):
    with pytest.raises(ValueError, match=f'FilterByMaskCells.{message}'):
        FilterByMaskCells(**settings)


# FilterByMaskQuality -------------------------------------------------------


def test_mask_score_limit_is_included_and_empty_masks_go(instances_factory):
    label = instances_factory([[0, 0, 4, 4]] * 3 + [[0, 0, 0, 0]], [0] * 4,
                              SHAPE)
    label.mask_scores = torch.tensor([0.5, 0.49, 0.75, 0.9])
    stage = FilterByMaskQuality(min_mask_score=0.5)
    assert stage.keep(label).tolist() == [True, False, True, False]
    assert stage.requires == ('masks', 'bboxes', 'mask_scores')


def test_box_agreement_by_hand(instances_factory):
    label = instances_factory([[2, 2, 10, 10]] * 6 + [[0, 0, 0, 0]], [0] * 7,
                              SHAPE)
    label.bboxes = torch.tensor([
        [2., 2, 10, 10],  # the same
        [2, 2, 10, 18],  # 64 of 128: exactly one half
        [2, 2, 10, 18.1],  # a little less
        [2, 2, 6, 10],  # 32 of 64
        [12, 12, 19, 19],  # apart
        [10, 10, 2, 2],  # inside out
        [0, 0, 0, 0],  # an empty mask with an empty box
    ])
    stage = FilterByMaskQuality(min_box_iou=0.5)
    assert stage.keep(label).tolist() == [
        True, True, False, True, False, False, False
    ]
    assert stage.requires == ('masks', 'bboxes')


def test_box_agreement_measures_the_tight_box(instances_factory):
    label = instances_factory([[0, 0, 20, 20]], [0], SHAPE)
    label.masks[:] = False
    label.masks[0, 3, 4] = True
    label.masks[0, 8, 13] = True
    label.bboxes = torch.tensor([[4., 3, 14, 9]])
    assert FilterByMaskQuality(min_box_iou=1).keep(label).tolist() == [True]


def test_both_mask_measures_must_pass(instances_factory):
    label = instances_factory([[0, 0, 4, 4]] * 3, [0] * 3, SHAPE)
    label.mask_scores = torch.tensor([0.9, 0.1, 0.9])
    label.bboxes[2] += 10
    stage = FilterByMaskQuality(min_mask_score=0.5, min_box_iou=0.5)
    assert stage.keep(label).tolist() == [True, False, False]


def test_mask_quality_needs_a_measure():
    with pytest.raises(ValueError, match='min_mask_score, min_box_iou or'):
        FilterByMaskQuality()


@pytest.mark.parametrize('name', ['min_mask_score', 'min_box_iou'])
@pytest.mark.parametrize('value', [-0.1, 2, math.nan, '0.5'])
def test_bad_mask_measures(name, value):
    with pytest.raises(ValueError, match=f'FilterByMaskQuality.{name}='):
        FilterByMaskQuality(**{name: value})


# RemoveDuplicates ----------------------------------------------------------


def test_the_best_of_overlapping_instances_stays(instances_factory):
    # IoU of the first two: 90 / 100; the third overlaps none.
    label = instances_factory([[0, 0, 10, 10], [0, 0, 10, 9], [11, 0, 20, 9]],
                              [0, 1, 0], SHAPE, [0.6, 0.9, 0.7])
    assert RemoveDuplicates(0.5).keep(label).tolist() == [1, 2]
    assert run(RemoveDuplicates(0.5), label).scores.equal(
        torch.tensor([0.9, 0.7]))


def test_duplicates_of_other_classes_may_stay(instances_factory):
    label = instances_factory([[0, 0, 10, 10]] * 4, [0, 1, 1, 0], SHAPE,
                              [0.6, 0.9, 0.7, 0.8])
    assert RemoveDuplicates().keep(label).tolist() == [1]
    stage = RemoveDuplicates(class_agnostic=False)
    assert stage.keep(label).tolist() == [1, 3]


def test_overlap_at_the_threshold_stays(instances_factory):
    # IoU 50 / 100, exact in floating point.
    label = instances_factory([[0, 0, 10, 10], [0, 0, 10, 5]], [0, 0], SHAPE,
                              [0.9, 0.8])
    assert RemoveDuplicates(0.5).keep(label).tolist() == [0, 1]
    assert RemoveDuplicates(0.49).keep(label).tolist() == [0]


def test_what_is_removed_removes_nothing(instances_factory):
    # A chain: the second overlaps both others, these not each other.
    label = instances_factory([[0, 0, 6, 10], [2, 0, 8, 10], [4, 0, 10, 10]],
                              [0] * 3, SHAPE, [0.9, 0.8, 0.7])
    # Neighbours share 40 of 80, the outer two 20 of 100.
    assert RemoveDuplicates(0.3).keep(label).tolist() == [0, 2]


def test_of_equal_scores_the_first_stays(instances_factory):
    label = instances_factory([[0, 0, 10, 10]] * 20, [0] * 20, SHAPE,
                              [0.5] * 20)
    assert RemoveDuplicates().keep(label).tolist() == [0]


def test_masks_decide_where_they_exist(instances_factory):
    label = instances_factory([[0, 0, 10, 10]] * 2, [0, 0], SHAPE, [0.9, 0.8])
    # The same box, but one mask is its left and one its right half.
    label.masks[0, :, 5:] = False
    label.masks[1, :, :5] = False
    assert RemoveDuplicates().keep(label).tolist() == [0, 1]
    del label.masks
    assert RemoveDuplicates().keep(label).tolist() == [0]


def test_overlap_of_boxes_by_hand():
    label = boxed([[0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30],
                   [3, 3, 3, 3]])
    overlaps = RemoveDuplicates().overlaps(label)
    expected = torch.eye(4)
    expected[0, 1] = expected[1, 0] = 25 / 175
    expected[3, 3] = 0
    assert overlaps.equal(expected)


def test_empty_masks_are_no_duplicates(instances_factory):
    label = instances_factory([[0, 0, 0, 0]] * 2, [0, 0], SHAPE, [0.9, 0.8])
    assert RemoveDuplicates().keep(label).tolist() == [0, 1]


@pytest.mark.parametrize('iou_thr', [-0.1, 1.5, math.nan, '0.5'])
def test_bad_overlap_thresholds(iou_thr):
    with pytest.raises(ValueError, match='RemoveDuplicates.iou_thr='):
        RemoveDuplicates(iou_thr)


# KeepTopScores -------------------------------------------------------------


@pytest.mark.parametrize('number, kept', [(1, [2]), (2, [2, 1]),
                                          (3, [2, 1, 3]),
                                          (9, [2, 1, 3, 0])])
def test_top_scores_best_first_and_ties_in_order(number, kept):
    label = scored([0.1, 0.5, 0.9, 0.5])
    assert KeepTopScores(number).keep(label).tolist() == kept


@pytest.mark.parametrize('number', [0, -1, 1.5, '3', None])
def test_bad_numbers_to_keep(number):
    with pytest.raises(ValueError, match='KeepTopScores.max_per_image='):
        KeepTopScores(number)


# SkipUncertainImages -------------------------------------------------------


@pytest.mark.parametrize('scores, usable', [
    ([0.9, 0.8], True),
    ([0.9, 0.1], True),
    ([0.9, 0.5], False),
    ([0.5], False),
    ([0.1], True),
    ([], True),
    ([0.75], False),
    ([0.25], True),
])
def test_images_with_middling_scores_are_marked(scores, usable):
    label = run(SkipUncertainImages(0.25, 0.75), scored(scores))
    assert label.usable is usable
    assert len(label) == len(scores)


@pytest.mark.parametrize('scores, usable', [([0.9], True), ([0.1], False),
                                            ([], False), ([0.9, 0.5], False)])
def test_images_without_a_certain_instance_may_be_skipped(scores, usable):
    stage = SkipUncertainImages(0.25, 0.75, skip_empty=True)
    assert run(stage, scored(scores)).usable is usable


@pytest.mark.parametrize('first', [True, False])
def test_an_image_marked_unusable_stays_so(first):
    label = scored([0.9])
    label.set_metainfo(dict(usable=first))
    assert run(SkipUncertainImages(0.25, 0.75), label).usable is first
    assert label.usable is first


@pytest.mark.parametrize('low_thr, high_thr, message', [
    (0.5, 0.5, 'low_thr must be below'),
    (0.7, 0.5, 'low_thr must be below'),
    (-0.1, 0.5, 'low_thr=-0.1'),
    (0.1, 1.5, 'high_thr=1.5'),
    (math.nan, 0.5, 'low_thr=nan'),
])
def test_bad_certainty_thresholds(low_thr, high_thr, message):
    with pytest.raises(ValueError, match=message):
        SkipUncertainImages(low_thr, high_thr)
