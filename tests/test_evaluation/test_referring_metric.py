# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
import re

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS

from mmsemi.evaluation import ReferringMetric
from mmsemi.evaluation import referring_metric as module
from mmsemi.evaluation import referring_metrics

# Intersection and union.
SPEC = [(2, 3), (1, 1), (0, 0)]
SPEC_METRICS = {
    'oIoU': 75.,
    'mIoU': 500 / 9,
    'P@0.5': 200 / 3,
    'P@0.6': 200 / 3,
    'P@0.7': 100 / 3,
    'P@0.8': 100 / 3,
    'P@0.9': 100 / 3
}


def masks(intersection, union):
    """Return a prediction and a truth (4, 5) with these numbers."""
    prediction, truth = torch.zeros(2, 20, dtype=torch.long)
    prediction[:union] = 1
    truth[:intersection] = 1
    return prediction.view(4, 5), truth.view(4, 5)


def sample(*cases, **more):
    pairs = [masks(*case) for case in cases]
    prediction, truth = (torch.stack(maps) for maps in zip(*pairs))
    return dict(
        pred_sem_seg=dict(data=prediction),
        gt_sem_seg=dict(data=truth),
        **more)


def evaluate(samples, **options):
    metric = ReferringMetric(**options)
    for one in samples:
        metric.process(None, [one])
    return metric.evaluate(len(samples))


def test_fixture_of_the_released_code():
    assert referring_metrics(SPEC) == pytest.approx(SPEC_METRICS)
    assert list(referring_metrics(SPEC)) == list(SPEC_METRICS)
    assert evaluate([sample(case)
                     for case in SPEC]) == pytest.approx(SPEC_METRICS)


@pytest.mark.parametrize('threshold', [0.5, 0.6, 0.7, 0.8, 0.9])
def test_thresholds_are_reached_by_equality(threshold):
    part = round(threshold * 10)
    for scale in (1, 3, 7, 11, 1000003):
        found = referring_metrics([(part * scale, 10 * scale)])
        assert found[f'P@{threshold}'] == 100
        found = referring_metrics([(part * scale - 1, 10 * scale)])
        assert found[f'P@{threshold}'] == 0


def test_nothing_predicted_of_nothing():
    assert set(referring_metrics([(0, 0)]).values()) == {0.}


def test_several_sentences_of_a_sample_count_each():
    together = evaluate([sample(*SPEC)])
    assert together == pytest.approx(SPEC_METRICS)
    mixed = evaluate([sample(SPEC[0], SPEC[2]), sample(SPEC[1])])
    assert mixed == pytest.approx(SPEC_METRICS)
    # One truth for all sentences.
    one = sample((2, 3), (2, 3))
    one['gt_sem_seg']['data'] = one['gt_sem_seg']['data'][:1]
    assert evaluate([one])['oIoU'] == pytest.approx(200 / 3)


def test_ignored_pixels_do_not_count():
    one = sample((2, 3))
    one['gt_sem_seg']['data'][0, 0, 2] = 255
    assert evaluate([one])['oIoU'] == 100
    one['gt_sem_seg']['data'][0, 0, 2] = 9
    assert evaluate([one])['oIoU'] == pytest.approx(200 / 3)
    assert evaluate([one], ignore_index=9)['oIoU'] == 100


def test_evaluation_size():
    # A small image that is right, a large one that is wrong by half.
    small = torch.zeros(1, 2, 2, dtype=torch.long)
    small[..., 0] = 1
    large = torch.ones(1, 8, 8, dtype=torch.long)
    half = large.clone()
    half[:, 4:] = 0
    samples = [
        dict(pred_sem_seg=dict(data=p), gt_sem_seg=dict(data=t))
        for p, t in ((small, small), (half, large))
    ]
    found = evaluate(samples)
    assert found['oIoU'] == pytest.approx(100 * (2 + 32) / (2 + 64))
    found = evaluate(samples, eval_size=(4, 4))
    assert found['oIoU'] == pytest.approx(100 * (8 + 8) / (8 + 16))
    # Prediction and truth of two sizes meet there only.
    samples[1]['pred_sem_seg']['data'] = half[:, ::2, ::2]
    assert evaluate(samples, eval_size=(4, 4)) == found
    with pytest.raises(ValueError, match='do not fit'):
        evaluate(samples)


def test_resizing_takes_the_nearest_centre():
    labels = torch.arange(5)[None].repeat(5, 1)
    resized = module.resize_labels(labels, (5, 3))
    # Centres at 5/6, 15/6 and 25/6.
    assert resized[0].tolist() == [0, 2, 4]
    assert resized.dtype == labels.dtype
    assert module.resize_labels(labels, None) is labels


@pytest.mark.parametrize('size, words', [
    (None, "true masks' own size"),
    ((4, 6), r'4 x 6 pixels \(height x width\)'),
])
def test_the_log_says_the_size(size, words, monkeypatch):
    lines = []
    monkeypatch.setattr(module, 'print_log', lambda m, **_: lines.append(m))
    evaluate([sample(*SPEC)], eval_size=size)
    assert len(lines) == 1
    assert re.search(words, lines[0])
    assert lines[0].startswith('3 sentences compared at')


def test_dump(tmp_path):
    path = tmp_path / 'folder/found.json'
    samples = [
        sample(*SPEC[:2], img_path='a.jpg', ref_id=4, sent_id=[8, 9],
               text=['dog', 'cat']),
        sample(SPEC[2], img_path='b.jpg', ref_id=5, sent_id=10, text='cow')
    ]
    for _ in range(2):
        evaluate(samples, dump_path=str(path))
        assert json.loads(path.read_text()) == [
            dict(img_path='a.jpg', ref_id=4, sent_id=8, text='dog',
                 intersection=2, union=3, iou=2 / 3),
            dict(img_path='a.jpg', ref_id=4, sent_id=9, text='cat',
                 intersection=1, union=1, iou=1.),
            dict(img_path='b.jpg', ref_id=5, sent_id=10, text='cow',
                 intersection=0, union=0, iou=0.)
        ]
    samples[0]['text'] = ['dog', 'cat', 'cow']
    with pytest.raises(ValueError, match='text has 3 values for 2'):
        evaluate(samples, dump_path=str(path))


def test_prefix_and_registry():
    metric = METRICS.build(dict(type='mmsemi.ReferringMetric', prefix='testA'))
    metric.process(None, [sample(*SPEC)])
    assert metric.evaluate(1)['testA/oIoU'] == 75


@pytest.mark.parametrize('options, message', [
    (dict(eval_size=480), 'eval_size must be None or .* got 480'),
    (dict(eval_size=(480, 0)), 'eval_size must be'),
    (dict(dump_path='found.pkl'), 'dump_path must end with .json'),
])
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        ReferringMetric(**options)


def test_refused_samples():
    metric = ReferringMetric()
    for field in ('pred_sem_seg', 'gt_sem_seg'):
        broken = sample((1, 2), img_path='x.jpg')
        del broken[field]
        with pytest.raises(ValueError, match=f'no {field} of x.jpg'):
            metric.process(None, [broken])
    broken = sample((1, 2), (1, 2))
    broken['gt_sem_seg']['data'] = torch.zeros(3, 4, 5)
    with pytest.raises(ValueError, match='do not fit; both must be'):
        metric.process(None, [broken])
    with pytest.raises(ValueError, match='saw no sample'):
        metric.evaluate(0)


# Processes ----------------------------------------------------------------

NUMBER = 5


def of_a_process(rank, world_size):
    """Evaluate what falls to one process; the last batch is filled up."""
    evaluator = Evaluator(dict(type='mmsemi.ReferringMetric'))
    share = -(-NUMBER // world_size)
    for turn in range(share):
        number = (turn * world_size + rank) % NUMBER
        cases = [(number + k, 7 + k) for k in range(1 + number % 2)]
        evaluator.process([sample(*cases)])
    return evaluator.evaluate(NUMBER)


def run_rank(rank, world_size, folder):
    torch.distributed.init_process_group(
        'gloo',
        init_method=f'file://{folder}/rendezvous',
        rank=rank,
        world_size=world_size)
    found = of_a_process(rank, world_size)
    with open(f'{folder}/{rank}.json', 'w') as file:
        json.dump(found, file)
    torch.distributed.destroy_process_group()


def test_any_number_of_processes_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = of_a_process(0, 1)
    torch.multiprocessing.start_processes(
        run_rank, (2, str(tmp_path)), nprocs=2, start_method='fork')
    for rank in range(2):
        found = json.loads((tmp_path / f'{rank}.json').read_text())
        assert found == alone
