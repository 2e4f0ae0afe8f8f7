# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json

import pytest
import torch
from matplotlib.image import imread
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmsemi.apis.calibration_report import calibration_report
from mmsemi.apis.judged_images import (JudgedImage, federated_labels,
                                       judge_image, labeled_annotations,
                                       predict_views)
from mmsemi.apis.report_pages import table, write_report
from mmsemi.pseudo_labels import PredictionOutcomes

NAMES = ('zero', 'one', 'two')


def image(image_id, labels, scores, right, truth=None, ious=None, known=None):
    """An image whose i-th prediction found the i-th instance or nothing."""
    labels = torch.tensor(labels, dtype=torch.long)
    right = torch.tensor(right, dtype=torch.bool)
    place = torch.arange(len(labels))
    judged = PredictionOutcomes(
        labels=labels,
        scores=torch.tensor(scores, dtype=torch.float32),
        matches=place.where(right, -torch.ones_like(place)),
        ious=torch.tensor(ious or right.tolist(), dtype=torch.float32),
        known=torch.ones_like(right)
        if known is None else torch.tensor(known),
        near=right,
        near_own=right,
        true_labels=labels[right]
        if truth is None else torch.tensor(truth, dtype=torch.long))
    return JudgedImage(image_id, judged, judged)


def spec_images():
    """Two classes of known errors, spread over two images."""
    return [
        image(0, [0, 0, 0, 1, 1], [.95, .90, .85, .35, .45], [1, 0, 1, 1, 1]),
        image(1, [0, 0, 1, 1], [.75, .65, .55, .30], [0, 0, 1, 0],
              truth=[1, 0, 2, 2])
    ]


def row_of(rows, **wanted):
    found = [row for row in rows
             if all(row[key] == value for key, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def check(row, **expected):
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, abs=1e-5), key


def test_numbers_of_classes_and_groups():
    numbers = calibration_report(
        spec_images(), NAMES, [2, 0, 0], num_bins=5, modes=()).numbers
    assert [row['name'] for row in numbers['classes']] == list(NAMES)
    check(numbers['classes'][0], count=5, instances=3, accuracy=.4,
          confidence=.82, CCECE=.42, signedCCECE=-.42)
    check(numbers['classes'][1], count=4, instances=3, accuracy=.75,
          confidence=.4125, CCECE=.3375, signedCCECE=.3375)
    assert numbers['classes'][2] == dict(
        name='two', group='rare', instances=2, count=0., accuracy=None,
        confidence=None, CCECE=None, signedCCECE=None, excessCCECE=None,
        squaredCE=None, LaECE=None)
    assert numbers['unmeasured'] == ['two']
    assert [row['name'] for row in numbers['groups']
            ] == ['all', 'rare', 'common', 'frequent']
    check(numbers['groups'][0], classes=3, measured=2, count=9, CCECE=.37875,
          signedCCECE=-.04125, accuracy=.575)
    check(numbers['groups'][1], classes=2, measured=1, count=4, CCECE=.3375)
    check(numbers['groups'][2], classes=0, measured=0, count=0)
    assert numbers['groups'][2]['CCECE'] is None
    check(numbers['groups'][3], classes=1, measured=1, CCECE=.42)
    check(numbers, images=2, predictions=9, left_out=0, instances=8)
    assert numbers['correction'] is None
    json.dumps(numbers, allow_nan=False)


def test_luck_and_few_predictions():
    """One bin: ten predictions of .7, five right; expected by luck: E|gap|.

    The debiased squared error is .2^2 - .25 / 9.
    """
    right = [1] * 5 + [0] * 5
    numbers = calibration_report([image(0, [0] * 10, [.7] * 10, right)],
                                 ['a'], modes=()).numbers
    check(numbers['classes'][0], CCECE=.2, excessCCECE=.2 - .11207,
          squaredCE=.012222)
    # The binomial mean absolute deviation of p = .7 and n = 5.
    few = calibration_report([image(0, [0] * 5, [.7] * 5, [1] * 5)], ['a'],
                             modes=()).numbers['classes'][0]
    check(few, CCECE=.3, excessCCECE=.3 - .172872)


def test_error_of_localization():
    found = [
        image(0, [0, 0], [.9, .6], [1, 0], ious=[.8, 0.]),
        image(1, [1], [.5], [1], ious=[.5])
    ]
    numbers = calibration_report(found, ['a', 'b'], modes=()).numbers
    assert [row['LaECE'] for row in numbers['classes']
            ] == pytest.approx([.35, 0.])
    check(numbers['groups'][0], LaECE=.175)


def test_what_cannot_be_judged_is_left_out():
    found = [image(0, [0, 0], [.9, .8], [1, 0], known=[True, False])]
    numbers = calibration_report(found, ['a'], modes=()).numbers
    check(numbers, predictions=1, left_out=1)
    check(numbers['classes'][0], count=1, accuracy=1, confidence=.9)
    check(row_of(numbers['pseudo_labels'], group='all'), pseudo_labels=1,
          precision=1)


def test_pseudo_labels_of_groups():
    rows = calibration_report(
        spec_images(), NAMES, [2, 0, 0], score_thrs=(.4, .9),
        modes=()).numbers['pseudo_labels']
    assert [(row['score_thr'], row['group']) for row in rows] == [
        (thr, name) for thr in (.4, .9)
        for name in ('all', 'rare', 'common', 'frequent')
    ]
    check(row_of(rows, score_thr=.4, group='all'), pseudo_labels=7,
          instances=8, matched=4, precision=4 / 7, recall=.5, iou=1)
    check(row_of(rows, score_thr=.4, group='rare'), pseudo_labels=2,
          instances=5, matched=2, precision=1, recall=.4)
    check(row_of(rows, score_thr=.4, group='frequent'), pseudo_labels=5,
          instances=3, matched=2, precision=.4, recall=2 / 3)
    assert row_of(rows, score_thr=.4, group='common')['precision'] is None
    # Strictly more than the threshold.
    check(row_of(rows, score_thr=.9, group='all'), pseudo_labels=1,
          matched=1)


def correction_images():
    # In the order of hashes 0 comes before 1: it is fitted to image 0.
    return [
        image(1, [0, 0], [.75, .9], [1, 0]),
        image(0, [0, 0], [.9, .9], [1, 0])
    ]


def test_correction_is_fitted_to_one_half_and_judged_on_the_other():
    report = calibration_report(
        correction_images(), ['a'], num_bins=5, score_thrs=(.4, 0., 1.),
        modes=('scalar', ))
    correction = report.numbers['correction']
    check(correction, fit_images=1, judged_images=1)
    before, after = correction['modes']
    assert (before['mode'], after['mode']) == ('none', 'scalar')
    check(before['groups'][0], count=2, confidence=.825, CCECE=.575,
          signedCCECE=-.325, brier=.43625)
    # The gap of image 0 is -.4: confidences become .35 and .5.
    check(after['groups'][0], count=2, confidence=.425, CCECE=.575,
          signedCCECE=.075, brier=.33625)
    check(row_of(before['pseudo_labels'], score_thr=.4), pseudo_labels=2,
          instances=1, matched=1)
    check(row_of(after['pseudo_labels'], score_thr=.4), pseudo_labels=1,
          matched=0, recall=0)
    for mode in correction['modes']:
        for thr, count in ((0., 2), (1., 0)):
            check(row_of(mode['pseudo_labels'], score_thr=thr),
                  pseudo_labels=count)
    assert list(report.corrected) == ['none', 'scalar']
    assert report.corrected['none'].sum(1).tolist() == [
        pytest.approx([2, 1.65, 1])
    ]
    assert report.statistics.sum(1)[0, 0] == 4


def test_order_of_images_plays_no_role():
    images = correction_images()
    modes = ('scalar', 'bin', 'platt', 'temperature')
    first, second = (
        calibration_report(order, ['a'], modes=modes).numbers
        for order in (images, images[::-1]))
    assert first == second
    assert [mode['mode'] for mode in first['correction']['modes']
            ] == ['none', *modes]


def test_model_without_predictions(tmp_path):
    found = [image(i, [], [], [], truth=[0]) for i in range(2)]
    report = calibration_report(found, ['a', 'b'], [0, 2])
    assert report.numbers['unmeasured'] == ['a', 'b']
    check(row_of(report.numbers['pseudo_labels'], group='all'), recall=0)
    assert len(report.corrected) == 3
    paths = write_report(
        calibration_report(found, ['a', 'b'], modes=()), tmp_path, {})
    assert 'a, b.' in paths[1].read_text().splitlines()[-1]


@pytest.mark.parametrize('change, message', [
    (dict(images=[]), 'There are 0 images'),
    (dict(images=[image(0, [0], [.5], [1])]), 'corrections need two'),
    (dict(classes=()), 'The data names no classes'),
    (dict(classes=('a', )), '0 has an instance of class 1, but the data names '
     'only 1'),
    (dict(score_thrs=(1.5, )), 'score_thr=1.5; allowed are'),
    (dict(modes=('isotonic', )), "Unknown correction 'isotonic'; allowed are "
     "'none', 'scalar'"),
    (dict(groups=[0, 1]), 'groups must name the group of each of the 3'),
    (dict(groups=[0, 1, 3]), 'There is a group 3, but only 3 group_names'),
])
def test_wrong_arguments(change, message):
    arguments = dict(images=spec_images(), classes=NAMES, groups=None)
    with pytest.raises(ValueError, match=message):
        calibration_report(**{**arguments, **change})


def test_files_of_a_report(tmp_path):
    report = calibration_report(
        spec_images(), ('zero', 'o|ne', 'two'), [2, 0, 0],
        modes=('platt', ))
    paths = write_report(report, tmp_path / 'new', dict(config='x.py'))
    assert [path.name for path in paths] == [
        'report.json', 'report.md', 'reliability.png', 'correction.png'
    ]
    loaded = json.loads(paths[0].read_text())
    assert loaded.pop('facts') == dict(config='x.py')
    assert loaded == report.numbers
    text = paths[1].read_text()
    lines = text.splitlines()
    assert '- config: `x.py`' in lines
    assert '- 2 images with 8 instances' in lines
    row = next(line for line in lines if line.startswith('| zero |'))
    assert row.split(' | ')[:7] == ['| zero', 'frequent', '3', '5', '0.4000',
                                    '0.8200', '0.5000']
    assert any(line.startswith('| o\\|ne | rare |') for line in lines)
    assert any(line.startswith('| two | rare | 2 | 0 | – |')
               for line in lines)
    for title in ('## Groups of classes', '## Pseudo-labels',
                  '## Corrections', '## Classes', '## 1 unmeasured classes'):
        assert title in lines
    assert '![correction](correction.png)' in lines
    height, width, _ = imread(paths[3]).shape
    one = imread(paths[2]).shape
    # One row before and one after each correction, a column per group.
    assert abs(height - 2 * one[0] / 1.2) <= 2
    assert abs(width - one[1] / 1.2) <= 1


def test_report_without_corrections_and_groups(tmp_path):
    report = calibration_report(spec_images(), NAMES, modes=())
    paths = write_report(report, tmp_path, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'reliability.png', 'report.json', 'report.md'
    ] == sorted(p.name for p in paths)
    text = paths[1].read_text()
    assert 'Corrections' not in text and 'rare' not in text


def test_table_leaves_empty_columns_out():
    rows = [dict(name='a', count=3., x=None), dict(name='b', count=2.5)]
    assert table(rows, ('name', 'count', 'x')).splitlines() == [
        '| name | count |', '| :-- | --: |', '| a | 3 |', '| b | 2.5 |'
    ]


SHAPE = (20, 20)


def test_image_is_judged_twice(instances_factory):
    """IoU .8, IoU .3, in a crowd region, and nothing."""
    found = instances_factory([[0, 0, 10, 8], [10, 0, 20, 3],
                               [0, 12, 4, 16], [12, 12, 16, 16]], [0] * 4,
                              SHAPE, [.9, .8, .7, .6])
    truth = instances_factory([[0, 0, 10, 10], [10, 0, 20, 10]], [0, 0],
                              SHAPE)
    crowd = instances_factory([[0, 10, 10, 20]], [0], SHAPE)
    judged = judge_image(7, found, truth, crowd)
    assert judged.image_id == 7
    assert judged.judged.matches.tolist() == [0, -1, -1, -1]
    assert judged.judged.known.tolist() == [True, True, False, True]
    assert judged.located.matches.tolist() == [0, 1, -1, -1]
    assert judged.located.ious.tolist() == pytest.approx([.8, .3, 0, 0])
    for nothing in (found[:0], found):
        alone = judge_image(7, nothing, truth[:0])
        assert alone.judged.matches.tolist() == [-1] * len(nothing)


def test_federated_image(instances_factory):
    far = [[15, 15, 20, 20]]
    found = instances_factory([[0, 0, 8, 8], *far * 3], [1, 3, 1, 2], SHAPE,
                              [.9, .8, .7, .6])
    truth = instances_factory([[0, 0, 8, 8]], [1], SHAPE)
    judged = judge_image(
        0, found, truth, negative_labels=[3], not_exhaustive_labels=[1])
    assert judged.judged.known.tolist() == [True, True, False, False]
    report = calibration_report([judged], 'abcd', modes=()).numbers
    assert [row['count'] for row in report['classes']] == [0, 1, 0, 1]
    check(report, left_out=2)


class FileOfImages:
    """What an mmdet data set has of its annotation file."""
    cat2label = {10: 0, 30: 1}

    def __init__(self, path, images):
        self.ann_file = str(path)
        path.write_text(json.dumps(dict(images=images)))


def test_federated_labels_are_read_from_the_file(tmp_path):
    data = FileOfImages(tmp_path / 'lvis.json', [
        dict(id=1, neg_category_ids=[30, 99], not_exhaustive_category_ids=[]),
        dict(id=2, neg_category_ids=[], not_exhaustive_category_ids=[10])
    ])
    assert federated_labels(data) == {1: ([1], []), 2: ([], [0])}
    assert federated_labels(
        FileOfImages(tmp_path / 'coco.json', [dict(id=1)])) == {}
    data.ann_file = 's3://bucket/lvis.json'
    assert federated_labels(data) == {}
    assert federated_labels(object()) == {}


def test_labeled_annotations_are_found(tmp_path):
    (tmp_path / 'a.json').write_text('{}')
    labeled = dict(data_root=str(tmp_path), ann_file='a.json')

    def found(dataset):
        return labeled_annotations(
            Config(dict(train_dataloader=dict(dataset=dataset))))

    path = str(tmp_path / 'a.json')
    assert found(labeled) == path
    assert found(dict(dataset=labeled)) == path
    assert found(dict(datasets=[labeled, dict(ann_file='b.json')])) == path
    assert found(dict(datasets=[dict(labeled, ann_file='c.json')])) is None
    assert labeled_annotations(Config(dict(model=None))) is None


class Segmenter(torch.nn.Module):
    """Predicts one instance, in the frame that it is asked for."""

    def predict(self, inputs, data_samples, rescale):
        assert not rescale
        for sample in data_samples:
            assert sample.ori_shape == sample.img_shape
            assert sample.scale_factor == (1., 1.)
            assert 'gt_instances' not in sample
            masks = torch.zeros((1, *inputs.shape[2:]), dtype=torch.uint8)
            masks[0, 2:5, 1:9] = 1
            sample.pred_instances = InstanceData(
                labels=torch.tensor([1], dtype=torch.int32),
                scores=torch.tensor([.5]).double(),
                bboxes=torch.zeros((1, 4)),
                masks=masks)
        return data_samples


def test_predictions_are_of_the_unpadded_view(sample_factory):
    sample = sample_factory((6, 8), (10, 12))
    sample.set_metainfo(dict(ori_shape=(60, 80), scale_factor=(.1, .1)))
    sample.gt_instances = InstanceData(labels=torch.tensor([1]))
    found, = predict_views(Segmenter(), torch.zeros(1, 3, 10, 12), [sample])
    assert found.masks.shape == (1, 6, 8) and found.masks.dtype == torch.bool
    assert found.masks.sum() == 3 * 7
    assert found.bboxes.tolist() == [[1, 2, 8, 5]]
    assert found.labels.dtype == torch.int64
    assert found.scores.dtype == torch.float32
    assert sample.ori_shape == (60, 80)
