# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData

from mmsemi.evaluation import CalibrationMetric

NAMES = ('cat', 'dog', 'cow')
SHAPE = (20, 20)


@pytest.fixture
def make(instances_factory):
    """callable: A data sample from boxes, labels and scores."""

    def build(found, true, crowd=None, **metainfo):
        sample = DetDataSample(metainfo=metainfo)
        sample.pred_instances = instances_factory(*found[:2], SHAPE, found[2])
        sample.gt_instances = instances_factory(*true, SHAPE)
        if crowd is not None:
            sample.ignored_instances = instances_factory(*crowd, SHAPE)
        return sample

    return build


@pytest.fixture
def sample(make):
    """DetDataSample: Of class 0 one right by .8 and one wrong, 1 right."""
    return make(
        ([[0, 0, 10, 8], [0, 15, 5, 20], [10, 0, 20, 10]], [0, 0, 1],
         [.9, .6, .5]), ([[0, 0, 10, 10], [10, 0, 20, 5]], [0, 1]))


def evaluate(samples, classes=NAMES, **settings):
    evaluator = Evaluator(dict(type='mmsemi.CalibrationMetric', **settings))
    evaluator.dataset_meta = dict(classes=classes)
    evaluator.process(samples)
    found = evaluator.evaluate(len(samples))
    return {k.removeprefix('calibration/'): v for k, v in found.items()}


def close(found, **expected):
    return {k: found[k] for k in expected} == pytest.approx(
        expected, abs=1e-6, nan_ok=True)


def test_reference_values(sample):
    found = evaluate([sample], groups=[0, 1, 1])
    # In bins: +.1 and -.6 of class 0, +.5 of class 1.
    assert close(
        found,
        CCECE=.425,
        signedCCECE=.125,
        LaECE=.175,
        unmeasured=1,
        CCECE_r=.35,
        CCECE_c=.5,
        CCECE_f=math.nan,
        signedCCECE_r=-.25,
        signedCCECE_c=.5,
        LaECE_r=.35,
        LaECE_c=0.,
        squaredCE=math.nan)
    assert close(
        found, **{
            'CCECE/cat': .35,
            'CCECE/dog': .5,
            'CCECE/cow': math.nan,
            'signedCCECE/cat': -.25,
            'signedCCECE/dog': .5,
            'signedCCECE/cow': math.nan
        })
    # One prediction in a bin: luck gives 2 p (1 - p).
    luck = ((.18 + .48) / 2, .5)
    assert close(
        found,
        excessCCECE_r=.35 - luck[0],
        excessCCECE_c=0.,
        excessCCECE=(.35 - luck[0]) / 2)
    assert 'CCECE/cat' not in evaluate([sample], per_class=False)
    assert 'CCECE_r' not in evaluate([sample])


def test_debiased_error_needs_two_in_a_bin(make):
    box = [0, 0, 10, 10]
    found = evaluate([
        make(([box], [0], [.7]), ([box] if i < 5 else [], [0] * (i < 5)))
        for i in range(10)
    ])
    assert close(found, squaredCE=.012222, signedCCECE=-.2)


def test_settings_reach_the_measures(sample):
    assert close(evaluate([sample], num_bins=1), CCECE=.375)
    # Above .5 the second class is a miss.
    assert close(
        evaluate([sample], iou_thr=.51), **{'signedCCECE/dog': -.5})
    assert close(
        evaluate([sample], la_iou_thr=.51), **{'LaECE': (.35 + .5) / 2})
    assert close(evaluate([sample], la_num_bins=1), LaECE=(.35 + 0) / 2)
    assert close(
        evaluate([sample], outcome='iou'), **{'signedCCECE/dog': 0.})
    assert close(
        evaluate([sample], outcome='class'), **{'signedCCECE/cat': .1})
    assert close(
        evaluate([sample], score_thr=.55),
        unmeasured=2,
        **{'signedCCECE/cat': -.25})
    found = evaluate([sample], min_count=2)
    assert close(found, unmeasured=2, CCECE=.35, LaECE=.35)
    assert math.isnan(found['signedCCECE/dog'])


def test_what_was_counted_is_kept(sample):
    metric = CalibrationMetric()
    metric.dataset_meta = dict(classes=NAMES)
    metric.process(None, [sample.to_dict()])
    metric.evaluate(1)
    assert metric.statistics.shape == (3, 15, 3)
    assert metric.iou_statistics.shape == (3, 25, 3)
    assert metric.statistics.sum((0, 1)).tolist() == pytest.approx([3, 2, 2])
    assert metric.iou_statistics.sum((0, 1)).tolist() == pytest.approx(
        [3, 2, 1.3])


def test_images_are_summed_not_averaged(sample, make):
    other = make(([[0, 0, 10, 10]], [1], [.8]), ([], []))
    both = evaluate([sample, other])
    assert close(both, **{'signedCCECE/dog': (1 - 1.3) / 2})
    assert evaluate([other, sample]) == pytest.approx(
        both, nan_ok=True, abs=0)


def test_crowd_and_federated_rules(make):
    boxes = [[0, 0, 4, 4], [8, 8, 12, 12], [16, 16, 20, 20]]
    found, true = (boxes, [0, 1, 2], [.9, .8, .7]), ([boxes[2]], [2])
    crowd = make(found, true, ([[0, 0, 8, 8]], [0]))
    assert close(
        evaluate([crowd]), unmeasured=1, **{'signedCCECE/dog': -.8})
    nothing = make(found, true, ([], []))
    nothing.ignored_instances = InstanceData()
    assert close(evaluate([nothing]), unmeasured=0)
    federated = make(
        found, true, neg_category_ids=[1], not_exhaustive_category_ids=[2])
    assert close(
        evaluate([federated]),
        unmeasured=1,
        **{
            'signedCCECE/dog': -.8,
            'signedCCECE/cow': .3
        })
    alone = make(found, true, neg_category_ids=[])
    assert close(evaluate([alone]), unmeasured=2)


def test_nothing_but_crowd(make):
    box = [0, 0, 8, 8]
    crowd = make(([box], [0], [.9]), ([], []), ([box], [0]))
    found = evaluate([crowd])
    assert found.pop('unmeasured') == 3
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize('number', [0, 1])
def test_no_predictions(make, number):
    samples = [make(([], [], []), ([[0, 0, 4, 4]], [0]))] * number
    found = evaluate(samples, groups=[0, 1, 2])
    assert found.pop('unmeasured') == 3
    assert len(found) == 5 * 4 + 6
    assert all(math.isnan(value) for value in found.values())


def test_one_class(make):
    box = [0, 0, 8, 8]
    found = evaluate([make(([box], [0], [.75]), ([box], [0]))], ('cat', ))
    assert close(found, CCECE=.25, signedCCECE=.25, unmeasured=0)


@pytest.mark.parametrize('container', ['bitmap', 'polygon', 'boxes'])
def test_truth_of_any_kind(sample, container):
    expected = evaluate([sample])
    truth = sample.gt_instances
    if container == 'bitmap':
        truth.masks = BitmapMasks(truth.masks.numpy().astype(np.uint8),
                                  *SHAPE)
        truth.bboxes = HorizontalBoxes(truth.bboxes)
    elif container == 'polygon':
        truth.masks = PolygonMasks([[
            np.array([x1, y1, x2, y1, x2, y2, x1, y2])
        ] for x1, y1, x2, y2 in truth.bboxes.tolist()], *SHAPE)
    else:
        del truth.masks
    assert evaluate([sample]) == pytest.approx(
        expected, nan_ok=True, abs=1e-6)


def test_groups_from_a_file(sample, tmp_path):
    path = tmp_path / 'lvis.json'
    path.write_text(
        json.dumps(
            dict(
                categories=[
                    dict(id=i, name=name, frequency=f)
                    for i, (name, f) in enumerate(zip(NAMES, 'fcr'))
                ],
                annotations=[])))
    found = evaluate([sample], groups=str(path))
    assert close(found, CCECE_f=.35, CCECE_c=.5, CCECE_r=math.nan)


def test_diagrams_are_written(sample, tmp_path):
    path = tmp_path / 'folder' / 'diagrams.png'
    evaluate([sample], diagram_path=str(path), groups=[0, 1, 1])
    height, width, _ = cv2.imread(str(path)).shape
    assert width > 2 * height


def test_names_are_unique(sample):
    found = evaluate([sample], ('cat', 'cat', 'cow'))
    assert found['CCECE/cat'] == pytest.approx(.35)
    assert found['CCECE/cat (1)'] == pytest.approx(.5)


def test_a_prefix(sample):
    evaluator = Evaluator(dict(type='mmsemi.CalibrationMetric', prefix='val'))
    evaluator.dataset_meta = dict(classes=NAMES)
    evaluator.process([sample])
    assert 'val/CCECE' in evaluator.evaluate(1)


@pytest.mark.parametrize('settings, message', [
    (dict(num_bins=0), 'num_bins=0'),
    (dict(la_num_bins=1.5), 'la_num_bins=1.5'),
    (dict(min_count=0), 'min_count=0'),
    (dict(iou_thr=1.5), 'iou_thr=1.5'),
    (dict(la_iou_thr=-1), 'la_iou_thr=-1'),
    (dict(score_thr=2), 'score_thr=2'),
    (dict(outcome='box'), "CalibrationMetric.outcome='box'"),
    (dict(diagram_path='x.txt'), "diagram_path='x.txt'"),
])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        CalibrationMetric(**settings)


@pytest.mark.parametrize('settings, message', [
    (dict(groups=[0, 1]), 'CalibrationMetric.groups must name'),
    (dict(groups=[0, 1, 3]), 'has the group 3'),
    (dict(groups=[0, 1, 1], group_names=['x']), 'has the group 1'),
    (dict(classes=None), "has no 'classes'"),
    (dict(classes=('cat', )), 'predicts class 1'),
])
def test_bad_data(sample, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate([sample], **settings)


def test_bad_samples(sample):
    metric = CalibrationMetric()
    one = dict(sample.to_dict(), img_path='a/7.jpg')
    for field, message in (('pred_instances', 'no prediction .* of a/7.jpg'),
                           ('gt_instances', 'with_mask=True after Resize')):
        with pytest.raises(ValueError, match=message):
            metric.process(
                None, [{k: v
                        for k, v in one.items() if k != field}])
    larger = dict(one['gt_instances'], masks=torch.zeros(2, 40, 40))
    with pytest.raises(ValueError, match=r'a/7.jpg have \(20, 20\) pixels'):
        metric.process(None, [dict(one, gt_instances=larger)])
    encoded = dict(one['pred_instances'], masks=[dict(size=[20, 20])] * 3)
    with pytest.raises(ValueError, match='as a tensor'):
        metric.process(None, [dict(one, pred_instances=encoded)])
    assert metric.results == []


# Several processes ----------------------------------------------------------


@pytest.fixture(scope='module')
def script():
    """module: Evaluates its images in as many processes as there are."""
    path = Path(__file__).with_name('measure_calibration_in_processes.py')
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def test_two_processes_give_the_same(script, tmp_path):
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join(sys.path),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(free_port()),
        'WORLD_SIZE': '2'
    }
    processes = [
        subprocess.Popen([sys.executable, script.__file__,
                          str(tmp_path)],
                         env={
                             **environment, 'RANK': str(rank),
                             'LOCAL_RANK': str(rank)
                         },
                         cwd=tmp_path,
                         stdout=subprocess.DEVNULL,
                         stderr=open(tmp_path / f'{rank}.err', 'w'))
        for rank in range(2)
    ]
    try:
        for rank, process in enumerate(processes):
            code = process.wait(timeout=240)
            assert code == 0, (tmp_path / f'{rank}.err').read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    alone, counts = script.evaluate()
    assert counts == 7
    assert 0 < alone['calibration/CCECE'] < 1
    assert alone['calibration/unmeasured'] == 1
    for rank in range(2):
        found = json.loads((tmp_path / f'{rank}.json').read_text())
        # Four each: one image is there twice, and counts once.
        assert found['counts'] == 4
        # As text, because NaN is not equal to itself.
        assert json.dumps(found['metrics']) == json.dumps(alone)
        assert 'has the group 2' in found['message']
    assert (tmp_path / 'diagrams.png').exists()
