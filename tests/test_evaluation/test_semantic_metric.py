# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
import json
import math
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS, init_default_scope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample

from mmsemi.evaluation import (ConfusionMatrix, DumpSemanticResults,
                               SemanticMetric, boundary_overlaps,
                               semantic_metric)


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


def make_sample(prediction, truth=None, **metainfo):
    sample = SegDataSample(metainfo=metainfo)
    sample.pred_sem_seg = PixelData(data=torch.as_tensor(prediction)[None])
    if truth is not None:
        sample.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
    return sample


TRUTH = [[0, 0, 1, 1], [0, 2, 1, 255], [2, 2, 1, 0]]
PREDICTION = [[0, 0, 1, 2], [0, 2, 2, 1], [1, 2, 1, 3]]
NAMES = ('cat', 'dog', 'cow', 'elk', 'ant')


def evaluate(samples, classes=NAMES, **settings):
    evaluator = Evaluator(dict(type='mmsemi.SemanticMetric', **settings))
    evaluator.dataset_meta = dict(classes=classes)
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


def test_reference_values():
    metrics = evaluate([make_sample(PREDICTION, TRUTH)])
    expected = {
        'PA': 63.6363636, 'MA': 63.8888889, 'mIoU': 38.75,
        'FWIoU': 52.7272727, 'IoU/cat': 75., 'IoU/dog': 40., 'IoU/cow': 40.,
        'IoU/elk': 0., 'IoU/ant': math.nan, 'Acc/cat': 75., 'Acc/dog': 50.,
        'Acc/cow': 66.6666667, 'Acc/elk': math.nan, 'Acc/ant': math.nan
    }
    assert metrics == pytest.approx(expected, nan_ok=True)
    zero = evaluate([make_sample(PREDICTION, TRUTH)], absent='zero')
    assert zero['mIoU'] == pytest.approx(31.) and zero['IoU/ant'] == 0.


def test_images_are_summed_not_averaged():
    rows = [make_sample([p], [t]) for p, t in zip(PREDICTION, TRUTH)]
    whole = evaluate([make_sample(PREDICTION, TRUTH)])
    assert evaluate(rows) == pytest.approx(whole, nan_ok=True, abs=0)


def test_rounding_and_short_results():
    metrics = evaluate([make_sample(PREDICTION, TRUTH)],
                       decimals=2,
                       per_class=False,
                       prefix='val')
    assert metrics == {
        'val/PA': 63.64,
        'val/MA': 63.89,
        'val/mIoU': 38.75,
        'val/FWIoU': 52.73
    }


def random_samples(seed, num_classes):
    """Four images; classes 2 and, in truth, 3 do not occur."""
    rng = np.random.default_rng(seed)
    for _ in range(4):
        shape = rng.integers(5, 60, 2)
        truth = rng.integers(0, num_classes, shape)
        truth[(truth == 2) | (truth == 3)] = 255
        prediction = np.where(
            rng.random(shape) < 0.6, truth, rng.integers(0, num_classes,
                                                         shape))
        prediction[prediction == 2] = 255
        yield make_sample(prediction, truth)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('absent, nan_to_num', [('nan', None), ('zero', 0)])
def test_agrees_with_mmseg(seed, absent, nan_to_num):
    num_classes = 7
    samples = list(random_samples(seed, num_classes))
    names = tuple('abcdefg')
    ours = evaluate(samples, names, absent=absent)
    theirs = IoUMetric(nan_to_num=nan_to_num)
    theirs.dataset_meta = dict(classes=names)
    theirs.process({}, [sample.to_dict() for sample in samples])
    totals = [sum(parts) for parts in zip(*theirs.results)]
    exact = IoUMetric.total_area_to_metrics(*totals, nan_to_num=nan_to_num)
    for field in ('IoU', 'Acc'):
        found = [ours[f'{field}/{name}'] for name in names]
        np.testing.assert_allclose(found, 100 * exact[field], rtol=1e-6)
    rounded = theirs.evaluate(len(samples))
    for our_key, their_key in dict(
            PA='aAcc', MA='mAcc', mIoU='mIoU').items():
        assert round(ours[our_key], 2) == pytest.approx(
            rounded[their_key], abs=0.0051)
    assert math.isnan(ours['IoU/c']) == (absent == 'nan')


def test_boundary_iou():
    truth = torch.zeros((20, 30), dtype=torch.long)
    truth[4:15, 6:20] = 1
    samples = [
        make_sample(truth.roll(shift, 1), truth) for shift in range(3)
    ]
    plain = evaluate(samples)
    metrics = evaluate(samples, boundary_iou=True, dilation_ratio=0.05)
    overlap, union = sum(
        torch.stack(
            boundary_overlaps(truth.roll(shift, 1), truth, 5, 255, 0.05))
        for shift in range(3)).double()
    expected = (100 * overlap / union).tolist()
    found = [metrics[f'BIoU/{name}'] for name in NAMES]
    assert found == pytest.approx(expected, nan_ok=True)
    assert metrics['mBIoU'] == pytest.approx(np.nanmean(expected))
    assert 0 < found[1] < metrics['IoU/dog']
    assert {k: metrics[k] for k in plain} == pytest.approx(plain, nan_ok=True)
    zero = evaluate(samples, boundary_iou=True, absent='zero')
    assert zero['BIoU/ant'] == 0.


def test_picture_and_table(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(semantic_metric, 'print_log',
                        lambda text, **kwargs: printed.append(text))
    path = tmp_path / 'matrix.png'
    evaluate([make_sample(PREDICTION, TRUTH)],
             per_class=False,
             boundary_iou=True,
             confusion_matrix_path=str(path))
    assert mmcv.imread(str(path)).shape[2] == 3
    rows = [
        line.strip('| ').replace(' ', '').split('|')
        for line in printed[0].splitlines() if line.startswith('|')
    ]
    assert rows[0] == ['Class', 'IoU', 'Acc', 'BIoU']
    assert [row[:3] for row in rows[1:]] == [['cat', '75.0', '75.0'],
                                             ['dog', '40.0', '50.0'],
                                             ['cow', '40.0', '66.67'],
                                             ['elk', '0.0', 'nan'],
                                             ['ant', 'nan', 'nan']]


def test_float_predictions_of_one_channel():
    """mmseg thresholds a single channel to 0. and 1."""
    sample = make_sample(torch.tensor([[0., 1.]]), [[0, 0]])
    metrics = evaluate([sample], ('no', 'yes'))
    assert metrics['PA'] == 50. and metrics['mIoU'] == 25.


def test_results_are_small_and_cleared():
    metric = SemanticMetric()
    classes = [f'class {i}' for i in range(150)]
    metric.dataset_meta = dict(classes=classes)
    metric.process({}, [make_sample(PREDICTION, TRUTH).to_dict()])
    result, = metric.results
    assert result['counts'].tolist() == [3, 1, 2, 2, 1, 2]
    assert result['counts'].dtype == torch.long
    first = metric.evaluate(1)
    assert metric.results == []
    metric.process({}, [make_sample(PREDICTION, TRUTH).to_dict()])
    assert metric.evaluate(1) == pytest.approx(first, nan_ok=True)


@pytest.mark.parametrize('sample, message', [
    (make_sample([[0, 1]], [[0], [1]], img_path='a.jpg'),
     r'a.jpg: The prediction has the size \(1, 2\) and the truth \(2, 1\)'),
    (make_sample([[0, 1]], img_path='a.jpg'),
     r'no ground truth \(gt_sem_seg\) of a.jpg. Load it .* format_only=True'),
    (make_sample([[0, 1]], [[0, 9]], img_path='a.jpg'),
     r'a.jpg: The truth holds the labels \[9\]; allowed are 0 to 4'),
    (SegDataSample(), 'no prediction .pred_sem_seg. of an image without'),
])
def test_wrong_samples(sample, message):
    with pytest.raises(ValueError, match=message):
        evaluate([sample])


@pytest.mark.parametrize('classes', [None, ()])
def test_classes_must_be_known(classes):
    with pytest.raises(ValueError, match="metainfo has no 'classes'"):
        evaluate([make_sample(PREDICTION, TRUTH)], classes)
    metric = SemanticMetric()
    with pytest.raises(ValueError, match="metainfo has no 'classes'"):
        metric.process({}, [make_sample(PREDICTION, TRUTH).to_dict()])


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match='the evaluation saw no image'):
        evaluate([])
    with pytest.raises(ValueError,
                       match='all pixels of all 2 images are ignore_index=9'):
        evaluate([make_sample([[0]], [[9]])] * 2, ignore_index=9)


@pytest.mark.parametrize('settings, message', [
    (dict(absent='skip'), "absent='skip'"),
    (dict(dilation_ratio=0), 'dilation_ratio=0'),
    (dict(confusion_matrix_path='a.txt'), "confusion_matrix_path='a.txt'"),
    (dict(format_only=True), 'needs output_dir'),
])
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SemanticMetric(**settings)


@pytest.mark.parametrize('reduced', [False, True])
def test_predictions_are_written(tmp_path, reduced):
    sample = make_sample(
        PREDICTION, img_path='folder/a.b.jpg', reduce_zero_label=reduced)
    assert evaluate([sample], format_only=True, output_dir=str(tmp_path)) == {}
    written = mmcv.imread(str(tmp_path / 'a.b.png'), 'unchanged')
    assert written.dtype == np.uint8
    assert (written == np.array(PREDICTION) + reduced).all()


def test_predictions_above_a_byte_are_written(tmp_path):
    sample = make_sample([[0, 300]], [[0, 0]], img_path='a.jpg')
    evaluate([sample], output_dir=str(tmp_path))
    written = mmcv.imread(str(tmp_path / 'a.png'), 'unchanged')
    assert written.tolist() == [[0, 300]]
    with pytest.raises(ValueError, match='have no img_path'):
        evaluate([make_sample([[0]], [[0]])], output_dir=str(tmp_path))


def test_predictions_are_dumped(tmp_path):
    path = tmp_path / 'all.pkl'
    evaluator = Evaluator([
        DumpSemanticResults(str(path)),
        METRICS.build(dict(type='mmsemi.SemanticMetric'))
    ])
    evaluator.dataset_meta = dict(classes=NAMES)
    sample = make_sample(PREDICTION, TRUTH, img_path='a.jpg')
    sample.seg_logits = PixelData(data=torch.zeros((5, 3, 4)))
    large = make_sample([[0, 300]], [[0, 0]], img_path='b.jpg')
    evaluator.process([sample, large])
    assert 'mIoU' in evaluator.evaluate(2)
    first, second = pickle.loads(path.read_bytes())
    assert set(first) == {'img_path', 'pred_sem_seg'}
    assert first['pred_sem_seg']['data'].dtype == torch.uint8
    assert first['pred_sem_seg']['data'][0].tolist() == PREDICTION
    assert second['pred_sem_seg']['data'][0].tolist() == [[0, 300]]
    assert 'gt_sem_seg' in sample and sample.pred_sem_seg.data.dtype == \
        torch.long


# Several processes ----------------------------------------------------------


@pytest.fixture(scope='module')
def script():
    """module: Evaluates its images in as many processes as there are."""
    path = Path(__file__).with_name('evaluate_in_processes.py')
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
            code = process.wait(timeout=120)
            assert code == 0, (tmp_path / f'{rank}.err').read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    alone, counts = script.evaluate()
    assert counts == 7
    assert all(isinstance(value, float) for value in alone.values())
    for rank in range(2):
        found = json.loads((tmp_path / f'{rank}.json').read_text())
        # Four each: one image is there twice, and counts once.
        assert found['counts'] == 4
        assert found['metrics'] == alone
        assert 'the evaluation saw no image' in found['message']
    assert (tmp_path / 'matrix.png').exists()
    # The same as without mmengine.
    matrix = ConfusionMatrix(4)
    for index in range(7):
        sample = script.make_sample(index)
        matrix.update(sample['pred_sem_seg']['data'],
                      sample['gt_sem_seg']['data'])
    plain = matrix.metrics(script.CLASSES)
    assert {key: alone[key] for key in plain} == plain
