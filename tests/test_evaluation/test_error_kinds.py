# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Errors of the class and errors of the mask, counted by hand."""
import math

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from pycocotools.coco import COCO

from mmsemi.evaluation.error_kinds import (ErrorAnalysis, ErrorCounts,
                                           error_report, sort_errors)

SIDE = 20


def rle(x, y, width, height):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[y:y + height, x:x + width] = 1
    code = mask_utils.encode(np.asfortranarray(mask))
    return dict(size=code['size'], counts=code['counts'].decode())


def annotations(*instances, images=1, **image_fields):
    """Return (image, class, box, crowd) as COCO's annotations."""
    coco = COCO()
    coco.dataset = dict(
        images=[
            dict(
                id=i + 1,
                file_name=f'{i}.png',
                width=SIDE,
                height=SIDE,
                **image_fields) for i in range(images)
        ],
        categories=[dict(id=i, name=f'class {i}') for i in (1, 2, 3)],
        annotations=[
            dict(
                id=i,
                image_id=image,
                category_id=label,
                bbox=list(box),
                area=box[2] * box[3],
                iscrowd=int(crowd),
                segmentation=rle(*box))
            for i, (image, label, box, crowd) in enumerate(instances, 1)
        ])
    coco.createIndex()
    return coco


def found(image, label, score, box):
    return dict(
        image_id=image,
        category_id=label,
        score=score,
        bbox=list(box),
        segmentation=rle(*box))


BOX = (0, 0, 10, 10)
HALF = (0, 0, 4, 10)  # IoU 0.4
ELSEWHERE = (0, 12, 8, 8)
TRUTH = ((1, 1, BOX, False), (1, 2, (12, 0, 6, 6), False))


def analysis(results, truth=TRUTH, **kwargs):
    return ErrorAnalysis(annotations(*truth), results, **kwargs)


def kinds(*results, truth=TRUTH, **kwargs):
    counts = analysis(results, truth).error_counts(**kwargs).to_dict()
    return {name: n for name, n in counts.items() if n}


@pytest.mark.parametrize('label, box, kind, missed', [
    (1, BOX, 'right', 1),
    (1, HALF, 'localization', 1),
    (2, BOX, 'classification', 1),
    (2, HALF, 'both', 2),
    (1, ELSEWHERE, 'background', 2),
    (3, BOX, 'classification', 1),
])
def test_one_prediction_is_of_one_kind(label, box, kind, missed):
    counts = analysis([found(1, label, .9, box)]).error_counts()
    assert getattr(counts, kind) == counts.predictions == 1
    assert (counts.instances, counts.missed) == (2, missed)


def test_thresholds_are_where_they_are_said_to_be():
    # Half of the instance: an IoU of exactly 0.5 is right, 0.1 no background.
    assert kinds(found(1, 1, .9, (0, 0, 5, 10)))['right'] == 1
    assert kinds(found(1, 1, .9, (0, 0, 1, 10)))['localization'] == 1
    assert kinds(
        found(1, 1, .9, (0, 0, 1, 10)), background_thr=.11)['background'] == 1
    assert kinds(found(1, 1, .9, HALF), iou_thr=.4)['right'] == 1
    assert kinds(found(1, 2, .9, BOX), score_thr=.9) == dict(
        instances=2, missed=2)
    assert kinds(found(1, 2, .9, BOX), score_thr=.89)['classification'] == 1


def test_the_best_score_takes_an_instance():
    results = [found(1, 1, .5, BOX), found(1, 1, .9, (0, 0, 10, 9))]
    counts = kinds(*results)
    assert counts == dict(
        right=1,
        duplicate=1,
        instances=2,
        missed=1,
        predictions=2,
        class_accuracy=1.,
        mask_accuracy=1.)


def test_a_better_overlap_of_the_class_goes_first():
    """Of two instances of the class the nearer one is taken."""
    truth = ((1, 1, BOX, False), (1, 1, (0, 0, 10, 12), False))
    counts = kinds(
        found(1, 1, .9, (0, 0, 10, 12)), found(1, 1, .8, BOX), truth=truth)
    assert counts['right'] == 2 and 'missed' not in counts


def test_crowds_neither_count_nor_are_missed():
    truth = (*TRUTH, (1, 1, (0, 12, 20, 8), True))
    assert kinds(found(1, 1, .9, ELSEWHERE), truth=truth) == dict(
        ignored=1, instances=2, missed=2)
    # Of another class.
    assert kinds(
        found(1, 2, .9, ELSEWHERE), truth=truth)['background'] == 1


def test_images_without_predictions_or_instances():
    truth = annotations((1, 1, BOX, False), images=3)
    counts = ErrorAnalysis(truth,
                           [found(2, 1, .9, BOX)]).error_counts().to_dict()
    assert {n: v for n, v in counts.items() if v} == dict(
        background=1, instances=1, missed=1, predictions=1)
    assert counts['class_accuracy'] is None


def test_counts_add_up():
    one = sort_errors(
        np.array([[.8, .2], [.3, .1]]), np.array([1, 1]), np.array([.5, .6]),
        np.array([1, 2]), np.zeros(2, bool))
    assert one == ErrorCounts(
        right=1, localization=1, instances=2, missed=1)
    two = one + one
    assert (two.predictions, two.missed) == (4, 2)
    assert two.class_accuracy == 1. and two.mask_accuracy == .5
    assert math.isnan(ErrorCounts().class_accuracy)


# AP ------------------------------------------------------------------------


@pytest.mark.parametrize('iou_type', ['segm', 'bbox'])
def test_classes_cost_all_of_ap_and_masks_nothing(iou_type):
    wrong = [found(1, 2, .9, BOX), found(1, 1, .8, (12, 0, 6, 6))]
    report, lines = error_report(
        analysis(wrong, iou_type=iou_type), score_thrs=(.5, .85))
    assert report['with_classes'] == dict(AP=0., AP50=0., AP75=0.)
    assert report['without_classes'] == pytest.approx(
        dict(AP=1., AP50=1., AP75=1.))
    low, high = report['errors']
    assert (low['score_thr'], low['classification'], low['missed']) == (.5, 2,
                                                                        0)
    assert (high['score_thr'], high['classification']) == (.85, 1)
    assert 'With classes: AP 0.000' in lines[0]
    assert 'Above 0.5: 2 predictions: 0 right, 2 of a wrong class' in lines[2]


def test_ap_is_that_of_coco():
    # IoU 0.6 is right at 0.5, 0.55 and 0.6 of ten thresholds.
    results = [found(1, 1, .9, (0, 0, 6, 10))]
    values = analysis(results, truth=TRUTH[:1]).average_precision()
    assert values == pytest.approx(dict(AP=.3, AP50=1., AP75=0.))
    # Class 2 is missed.
    values = analysis(results).average_precision()
    assert values['AP50'] == pytest.approx(.5)


def test_one_object_with_two_names_counts_once():
    results = [
        found(1, 2, .9, BOX),
        found(1, 1, .8, BOX),
        found(1, 2, .7, (12, 0, 6, 6))
    ]
    both = analysis(results)
    assert both.average_precision(use_classes=False)['AP50'] == pytest.approx(
        1.)
    # Precision is 2/3 from the second of two instances on.
    kept = both.average_precision(use_classes=False, nms_thr=1.)
    assert kept['AP50'] == pytest.approx((51 + 50 * 2 / 3) / 101)
    # The analysis leaves what it is given alone.
    assert sorted(results[0]) == [
        'bbox', 'category_id', 'image_id', 'score', 'segmentation'
    ]


def test_nothing_found_and_nothing_there():
    assert analysis([]).average_precision() == dict(AP=0., AP50=0., AP75=0.)
    empty = analysis([found(1, 1, .9, BOX)], truth=())
    report, lines = error_report(empty)
    assert report['with_classes'] == dict(AP=None, AP50=None, AP75=None)
    assert report['errors'][0]['background'] == 1
    assert 'AP nan' in lines[0]


# Wrong input ---------------------------------------------------------------


def test_federated_annotations_are_refused():
    full = annotations(*TRUTH, neg_category_ids=[3])
    ErrorAnalysis(full, [])
    for fields in (dict(neg_category_ids=[]),
                   dict(
                       neg_category_ids=[3],
                       not_exhaustive_category_ids=[1])):
        with pytest.raises(ValueError, match='not searched for all classes'):
            ErrorAnalysis(annotations(*TRUTH, **fields), [])


@pytest.mark.parametrize('settings, words', [
    (dict(score_thr=2), 'score_thr=2; allowed are numbers from 0 to 1'),
    (dict(iou_thr=0), 'background_thr=0.1, iou_thr=0'),
    (dict(background_thr=.5), 'the first below the second'),
])
def test_thresholds_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        analysis([]).error_counts(**settings)
    with pytest.raises(ValueError, match='nms_thr=2'):
        analysis([]).average_precision(nms_thr=2)
    with pytest.raises(ValueError, match="iou_type='mask'"):
        analysis([], iou_type='mask')
