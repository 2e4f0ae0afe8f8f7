# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope

CPU = torch.device('cpu')
TOOL = Path(__file__).resolve().parents[2] / \
    'tools/analysis/benchmark_semantic.py'
OPTIONS = Namespace(
    size=64, images=(2, 2), iters=1, clock='cpu', device='cpu')


@pytest.fixture(scope='module')
def benchmark():
    spec = importlib.util.spec_from_file_location('benchmark_semantic', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(benchmark, monkeypatch, tmp_path):
    config = Config.fromfile(benchmark.MODEL)
    config.model.backbone.update(depth=18, base_channels=8, stem_channels=8)
    config.model.decode_head.update(
        in_channels=64, c1_in_channels=8, c1_channels=8, channels=16)
    path = tmp_path / 'small.py'
    config.dump(path)
    monkeypatch.setattr(benchmark, 'MODEL', path)
    init_default_scope('mmseg')


@pytest.mark.parametrize('name, passes', [
    ('fixmatch', dict(student=4, teacher=2)),
    ('cps', dict(networks=8)),
    ('unimatch', dict(student=8)),
])
def test_step_and_passes_see_as_many_images(benchmark, small, monkeypatch,
                                            name, passes):
    seen = {}

    def count(part):

        def hook(module, inputs):
            seen[part] = seen.get(part, 0) + len(inputs[0])

        return hook

    build, results = benchmark.build_model, []

    def watched(*args):
        model = build(*args)
        parts = dict(networks=list(model.networks)) if name == 'cps' else dict(
            student=[model.student], teacher=[model.teacher])
        for part, models in parts.items():
            for network in filter(None, models):
                network.backbone.register_forward_pre_hook(count(part))
        return model

    def run_both(step, bare_passes, *_):
        for function in (step, bare_passes):
            seen.clear()
            function()
            results.append(dict(seen))
        return {}

    monkeypatch.setattr(benchmark, 'build_model', watched)
    monkeypatch.setattr(benchmark, 'compare', run_both)
    result, = benchmark.bench_method(name, OPTIONS)
    assert results == [passes, passes]
    assert result['limit'] == 1.10


@pytest.mark.parametrize('arguments, message', [
    (['nonsense'], "unknown methods ['nonsense']"),
    (['--size', '100'], 'a multiple of 16'),
    (['--iters', '0'], 'start at 1'),
    (['--device', 'cuda', '--clock', 'cpu'], 'another device'),
])
def test_bad_arguments_are_named(benchmark, monkeypatch, capsys, arguments,
                                 message):
    monkeypatch.setattr(sys, 'argv', ['benchmark_semantic.py', *arguments])
    with pytest.raises(SystemExit):
        benchmark.parse_args()
    assert message in capsys.readouterr().err
