# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine import Config

from mmsemi.apis import timing

CPU = torch.device('cpu')
TOOL = Path(__file__).resolve().parents[2] / 'tools/analysis/benchmark.py'


@pytest.fixture(scope='module')
def benchmark():
    spec = importlib.util.spec_from_file_location('benchmark', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(**changes) -> Namespace:
    return Namespace(**{
        **dict(
            size=64,
            images=(1, 2),
            instances=3,
            views='shared',
            iters=1,
            clock='cpu'),
        **changes
    })


def test_ratios_are_paired_and_the_first_pair_is_dropped(monkeypatch):
    now = [0.]
    durations = iter([100., 1., 2., 1., 9., 3., 8., 2.])

    def work() -> None:
        now[0] += next(durations)

    monkeypatch.setattr(timing.time, 'perf_counter', lambda: now[0])
    assert timing.compare(work, work, CPU, 3, 'wall') == dict(
        first=8., second=2., ratio=3., lowest=2., highest=4.)


@pytest.mark.parametrize('views', ['shared', 'moved'])
@pytest.mark.parametrize('name', ['mask_rcnn', 'mask2former'])
def test_step_and_passes_do_the_same_work(benchmark, monkeypatch, tmp_path,
                                          tiny_segmentor_config, name, views):
    config = tmp_path / 'tiny.py'
    Config(
        dict(
            default_scope='mmdet',
            model=dict(
                segmentor=tiny_segmentor_config(name),
                teacher=dict(momentum=0.1, burn_in_steps=5),
                unsup_weight=1.,
                pseudo_label_pipeline=[
                    dict(type='mmsemi.FilterByScore', score_thr=0.9),
                    dict(type='mmsemi.FilterByArea', min_area=10**6)
                ]))).dump(config)
    monkeypatch.setitem(benchmark.CONFIGS, name, config)
    gradients, models = [], []
    build = benchmark.build_model

    def keep(*args):
        models.append(build(*args))
        return models[-1]

    def run_both(step, bare_passes, *_):
        for function in (step, bare_passes):
            function()
            gradients.append([
                p.grad.clone() for p in models[0].student.parameters()
                if p.grad is not None
            ])
        return {}

    monkeypatch.setattr(benchmark, 'build_model', keep)
    monkeypatch.setattr(benchmark, 'compare', run_both)
    result = benchmark.bench_step(name, options(views=views), CPU)
    # Neither the config's filters nor an untrained model empties a view.
    assert result['instances'] == [3, 3]
    assert int(models[0].step) == 1
    assert len(gradients[0]) == len(gradients[1]) > 0
    for first, second in zip(*gradients):
        torch.testing.assert_close(first, second)


def test_fastinst_and_mask2former_are_of_equal_width(benchmark):
    widths = []
    for path in benchmark.SUPERVISED.values():
        head = Config.fromfile(benchmark.CONFIG_ROOT / path).model
        head = head.panoptic_head
        widths.append((head.feat_channels, head.out_channels,
                       head.num_queries, head.num_things_classes))
    assert widths == [(256, 256, 100, 80)] * 2


def test_fastinst_is_compared(benchmark, monkeypatch):
    models = []

    class Model(torch.nn.Linear):

        def loss(self, inputs, data_samples):
            assert len(inputs) == len(data_samples) == 2
            return dict(loss=self(inputs.mean((2, 3))).sum())

        def parse_losses(self, losses):
            return losses['loss'], losses

    def build(name, device):
        models.append(name)
        return Model(3, 1)

    monkeypatch.setattr(benchmark, 'build_supervised', build)
    result, = benchmark.bench_fastinst(options(images=(2, 1)), CPU)
    assert models == ['fastinst', 'mask2former']
    assert result['ratio'] > 0
    assert result['images_per_second'] == [
        2 / result['first'], 2 / result['second']
    ]


def test_mask_containers_are_compared(benchmark):
    results = benchmark.bench_masks(
        options(), CPU, num=4, size=64, num_rois=6)
    assert [r['part'] for r in results] == ['masks', 'masks']
    assert all(r['first'] > 0 and r['ratio'] > 0 for r in results)


@pytest.mark.parametrize('ratio, code', [(1.1, None), (1.11, 1)])
def test_check_fails_above_the_limit(benchmark, monkeypatch, tmp_path,
                                     capsys, ratio, code):
    report = tmp_path / 'out' / 'bench.json'
    result = dict(
        part='mask_rcnn',
        what='mask_rcnn: step / bare passes',
        first=ratio,
        second=1.,
        ratio=ratio,
        lowest=1.,
        highest=2.,
        limit=benchmark.STEP_LIMIT)
    monkeypatch.setattr(benchmark, 'bench_step', lambda *_: result)
    monkeypatch.setattr(
        sys, 'argv',
        ['benchmark.py', 'mask_rcnn', '--check', '--json',
         str(report)])
    if code is None:
        benchmark.main()
    else:
        with pytest.raises(SystemExit) as end:
            benchmark.main()
        assert end.value.code == code
    out = capsys.readouterr().out
    assert f'{ratio:.3f}' in out
    assert ('Over the limit' in out) == (code == 1)
    assert json.loads(report.read_text())['results'] == [result]


@pytest.mark.parametrize('arguments, message', [
    (['nonsense'], "unknown parts ['nonsense']"),
    (['--size', '100'], 'a multiple of 32'),
    (['fastinst', '--size', '128'], 'need as many cells'),
    (['--iters', '0'], 'start at 1'),
    (['--device', 'cuda', '--clock', 'cpu'], 'another device'),
])
def test_bad_arguments_are_named(benchmark, monkeypatch, capsys, arguments,
                                 message):
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments])
    with pytest.raises(SystemExit):
        benchmark.parse_args()
    assert message in capsys.readouterr().err
