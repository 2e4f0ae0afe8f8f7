# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from mmsemi.pseudo_labels import (CalibratePixels, CalibrateScores,
                                  PseudoLabelPipeline)
from mmsemi.structures.dense_pseudo_label import DensePseudoLabel

FIELDS = ('bboxes', 'labels', 'scores', 'soft_labels')


def instances(scores, labels, soft_labels=None, bboxes=None):
    found = InstanceData(
        scores=torch.tensor(scores), labels=torch.tensor(labels).long())
    if soft_labels is not None:
        found.soft_labels = torch.tensor(soft_labels)
    if bboxes is not None:
        found.bboxes = torch.tensor(bboxes).float()
    return found


def teach(stage, score, label, outcome, times=10):
    """Let all predictions of a class have one score and a mean outcome."""
    stage.calibrator.update(
        torch.full((times, ), score), torch.full((times, ), label),
        torch.full((times, ), outcome))
    stage.calibrator.fit()


def scalar(num_classes=3):
    return CalibrateScores(dict(num_classes=num_classes, mode='scalar'))


# Correction ---------------------------------------------------------------


@pytest.mark.parametrize('mode', ['none', 'scalar', 'bin', 'platt'])
def test_nothing_measured_changes_nothing(mode):
    stage = CalibrateScores(dict(num_classes=3, mode=mode))
    given = instances([.7, .2], [0, 2],
                      [[.7, .2, .05, .05], [.1, .1, .2, .6]])
    found, = stage([given], [None])
    for field in ('scores', 'labels', 'soft_labels'):
        assert torch.equal(found[field], given[field])
    assert torch.equal(found.raw_scores, given.scores)
    assert 'raw_scores' not in given


def test_reference_of_the_paper_mode():
    """Group A: class 0 is over-confident by .42, class 1 under by .3375."""
    stage = CalibrateScores(dict(num_classes=2, num_bins=5, mode='scalar'))
    stage.calibrator.update(
        torch.tensor([.95, .90, .85, .75, .65, .35, .45, .55, .30]),
        torch.tensor([0] * 5 + [1] * 4),
        torch.tensor([1., 0, 1, 0, 0, 1, 1, 1, 0]))
    stage.calibrator.fit()
    found, = stage([instances([.90, .45], [0, 1])], [None])
    assert found.scores.tolist() == pytest.approx([.48, .7875])
    assert found.raw_scores.tolist() == pytest.approx([.90, .45])


def test_soft_labels_by_hand():
    """Group B: a gap of -.2 takes .7 to .5 and scales the rest."""
    stage = scalar()
    teach(stage, .7, 0, .5)
    found, = stage([instances([.7], [0], [[.70, .20, .05, .05]])], [None])
    assert found.soft_labels[0].tolist() == pytest.approx(
        [.5, 1 / 3, 1 / 12, 1 / 12])
    assert found.scores.tolist() == pytest.approx([.5])
    assert found.labels.tolist() == [0]


def test_likeliest_class_may_change():
    """.5 becomes .2, and the .45 of class 1 becomes .72."""
    stage = scalar()
    teach(stage, .5, 0, .2)
    found, = stage([instances([.5], [0], [[.5, .45, 0., .05]])], [None])
    assert found.soft_labels[0].tolist() == pytest.approx([.2, .72, 0, .08])
    assert found.labels.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([.2])


@pytest.mark.parametrize('order, kept', [(('calibrate', 'filter'), 1),
                                         (('filter', 'calibrate'), 0)])
def test_filter_sees_what_stands_before_it(order, kept):
    """Group G: a rare class, sure to .55 and right in .75 of the cases."""
    stage = scalar()
    teach(stage, .55, 2, .75)
    stages = dict(
        calibrate=stage, filter=dict(type='mmsemi.FilterByScore',
                                     score_thr=.7))
    pipeline = PseudoLabelPipeline([stages[name] for name in order], FIELDS)
    given = instances([.55], [2], [[.2, .15, .55, .1]], [[0, 0, 4, 4]])
    found, = pipeline([given], [DetDataSample()])
    assert len(found) == kept


def test_empty_image():
    stage = scalar()
    teach(stage, .5, 0, .2)
    found, = stage(
        [
            InstanceData(
                scores=torch.zeros(0),
                labels=torch.zeros(0).long(),
                soft_labels=torch.zeros(0, 4))
        ], [None])
    assert len(found) == 0 and found.soft_labels.shape == (0, 4)
    stage.observe([found], [
        DetDataSample(
            gt_instances=InstanceData(labels=torch.zeros(0).long()))
    ])


def test_what_comes_to_a_stage():
    stage = scalar()
    pipeline = PseudoLabelPipeline(
        [dict(type='mmsemi.FilterByScore', score_thr=.3), stage,
         dict(type='mmsemi.FilterByScore', score_thr=.9)], FIELDS)
    given = instances([.2, .5], [0, 0], bboxes=[[0, 0, 4, 4]] * 2)
    seen, = pipeline([given], [DetDataSample()], end=stage)
    assert seen.scores.tolist() == [.5] and 'raw_scores' not in seen


def test_statistics_are_in_the_state():
    first, second = scalar(), scalar()
    teach(first, .7, 0, .5)
    second.load_state_dict(first.state_dict())
    given = instances([.7], [0])
    assert torch.equal(
        second([given], [None])[0].scores,
        first([given], [None])[0].scores)


@pytest.mark.parametrize('kwargs, error, message', [
    (dict(calibrator=dict(type='mmsemi.ClassPrototypes', num_classes=2,
                          channels=1)), TypeError, 'is a ClassPrototypes'),
    (dict(calibrator=dict(num_classes=2), outcome='hit'), ValueError,
     "CalibrateScores.outcome='hit'"),
    (dict(calibrator=dict(num_classes=2), iou_thr=2), ValueError,
     'CalibrateScores.iou_thr'),
])
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        CalibrateScores(**kwargs)


# Observation --------------------------------------------------------------


def truth(labels, bboxes, **metainfo):
    return DetDataSample(
        metainfo=metainfo,
        gt_instances=InstanceData(
            labels=torch.tensor(labels).long(),
            bboxes=torch.tensor(bboxes).float()))


BOX, FAR = [0, 0, 4, 4], [20, 20, 24, 24]


def test_outcomes_are_counted():
    """Found, found twice, wrong class, nowhere."""
    stage = CalibrateScores(dict(num_classes=3, num_bins=1))
    predicted = instances([.9, .6, .5, .25], [1, 1, 2, 1],
                          bboxes=[BOX, BOX, BOX, FAR])
    stage.observe([predicted], [truth([1], [BOX])])
    count, confidence, outcome = stage.calibrator.total.sum(1).unbind(1)
    assert count.tolist() == [0, 3, 1]
    assert confidence.tolist() == pytest.approx([0, 1.75, .5], abs=1e-6)
    assert outcome.tolist() == [0, 1, 0]


def test_federated_images_judge_what_they_were_searched_for():
    """Group J: only class 3 is known not to be there."""
    stage = CalibrateScores(dict(num_classes=4, num_bins=1))
    predicted = instances([.5] * 4, [3, 1, 2, 1],
                          bboxes=[FAR, FAR, FAR, BOX])
    sample = truth([1], [BOX],
                   neg_category_ids=[3],
                   not_exhaustive_category_ids=[1])
    stage.observe([predicted], [sample])
    count, _, outcome = stage.calibrator.total.sum(1).unbind(1)
    assert count.tolist() == [0, 1, 0, 1]
    assert outcome.tolist() == [0, 1, 0, 0]


def test_images_without_annotations():
    with pytest.raises(ValueError, match='without annotations.*with_bbox'):
        scalar().observe([instances([.5], [0])], [DetDataSample()])
    with pytest.raises(ValueError, match='without label maps'):
        CalibratePixels(dict(num_classes=2)).observe([dense([[.5]])],
                                                     [SegDataSample()])


def test_annotations_in_another_frame():
    sample = truth([1], [BOX], img_shape=(16, 16))
    sample.gt_instances.masks = BitmapMasks(
        np.ones((1, 32, 32), np.uint8), 32, 32)
    with pytest.raises(ValueError, match=r'have \(32, 32\) pixels.*before'):
        scalar().observe([instances([.5], [1], bboxes=[BOX])], [sample])


# Pixels -------------------------------------------------------------------


def dense(first, valid=True):
    """Return a pseudo-label of two classes by the first's probability."""
    first = torch.tensor(first)
    prob = torch.stack([first, 1 - first])
    confidence, label = prob.max(0)
    return DensePseudoLabel(
        prob=prob,
        confidence=confidence,
        label=label,
        weight=torch.ones_like(first),
        valid=torch.full(first.shape, valid))


def seg_sample(labels):
    return SegDataSample(
        gt_sem_seg=PixelData(data=torch.tensor([labels], dtype=torch.uint8)))


def test_pixels_by_hand():
    """Class 0 loses .3: .6 becomes .3, so that class 1 is the likelier."""
    stage = CalibratePixels(dict(num_classes=2, mode='scalar'))
    teach(stage, .6, 0, .3)
    given = dense([[.6, .9], [.2, .6]])
    given.label[1, 1] = 255
    found, = stage([given], [None])
    assert found.prob[0].tolist()[0] == pytest.approx([.3, .6])
    assert found.label.tolist() == [[1, 0], [1, 255]]
    assert found.confidence.tolist()[0] == pytest.approx([.7, .6])
    assert found.confidence[1].tolist() == pytest.approx([.8, .6])
    assert torch.equal(found.weight, given.weight)
    assert given.label[0, 0] == 0


def test_pixels_pass_unchanged_at_first():
    given = dense([[.6, .9], [.2, .5]])
    found, = CalibratePixels(dict(num_classes=2))([given], [None])
    for field in ('prob', 'confidence', 'label'):
        assert torch.equal(found.get(field), given.get(field))


def test_known_pixels_are_counted():
    """A padded column, an ignored pixel, and a truth that is not padded."""
    stage = CalibratePixels(dict(num_classes=2, num_bins=1))
    given = dense([[.75, .75, .75], [.25, .75, .75]])
    given.valid[:, 2] = False
    stage.observe([given], [seg_sample([[0, 1], [1, 255]])])
    count, confidence, outcome = stage.calibrator.total.sum(1).unbind(1)
    assert count.tolist() == [2, 1]
    assert confidence.tolist() == [1.5, .75]
    assert outcome.tolist() == [1, 1]


def test_large_images_do_not_count_more():
    stage = CalibratePixels(dict(num_classes=2, num_bins=1), per_class=4)
    given = dense([[.75] * 16] * 2 + [[.25] * 2 + [.75] * 14])
    stage.observe([given], [seg_sample([[0] * 16] * 3)])
    count = stage.calibrator.total[..., 0].sum(1)
    assert count.tolist() == pytest.approx([4, 2])


def test_bad_number_of_predictions():
    with pytest.raises(ValueError, match='CalibratePixels.per_class=0'):
        CalibratePixels(dict(num_classes=2), per_class=0)
