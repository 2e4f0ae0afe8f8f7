# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).resolve().parents[2] / \
    'tools/analysis/benchmark_calibration.py'


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location('benchmark_calibration',
                                                  TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'FILLED', 200)
    return module


@pytest.fixture
def call(benchmark, monkeypatch):
    """callable: Runs the tool with arguments."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [TOOL.name, *arguments])
        benchmark.main()

    return run


def test_the_parts_are_measured(benchmark, call, monkeypatch, capsys):
    seen = []
    for name in ('update', 'fit', 'correct'):
        method = getattr(benchmark.ClassCalibrator, name)

        def watched(self, *args, _name=name, _method=method, **kwargs):
            seen.append(_name)
            return _method(self, *args, **kwargs)

        monkeypatch.setattr(benchmark.ClassCalibrator, name, watched)
    call('--classes', '7', '--predictions', '5', '--iters', '2')
    # One of each to fill the calibrator, one not counted, for four of them.
    assert [seen.count(name) for name in ('update', 'fit', 'correct')] == [
        4 + 3, 4 + 3, 3
    ]
    printed = capsys.readouterr().out
    assert '7 classes, 5 predictions an image' in printed
    assert 'medians of 2 pairs' in printed
    assert 'Statistics of 7 classes: 0.005 MB (may take 1)' in printed
    assert torch.get_num_threads() == 2


def test_limits_are_checked(benchmark, call, monkeypatch, capsys):
    arguments = ('update', '--classes', '7', '--iters', '1', '--mode', 'bin')
    monkeypatch.setitem(benchmark.LIMITS, 'update', 100.)
    call(*arguments, '--check')
    monkeypatch.setitem(benchmark.LIMITS, 'update', 1e-12)
    call(*arguments)
    assert 'Over the limit: update' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call(*arguments, '--check')
    monkeypatch.setitem(benchmark.LIMITS, 'update', 100.)
    monkeypatch.setattr(benchmark, 'MOST_BYTES', 10)
    with pytest.raises(SystemExit):
        call(*arguments, '--check')


def test_the_limits_are_those_promised(benchmark):
    assert benchmark.LIMITS['update'] == .002
    assert benchmark.LIMITS['fit'] == .2
    assert benchmark.MOST_BYTES == 1e6


@pytest.mark.parametrize('arguments, message', [
    (['nonsense'], "unknown parts ['nonsense']"),
    (['--classes', '0'], 'start at 1'),
    (['--iters', '0'], 'start at 1'),
    (['--mode', 'none'], 'invalid choice'),
    (['--device', 'cuda', '--clock', 'cpu'], 'another device'),
])
def test_bad_arguments_are_named(call, capsys, arguments, message):
    with pytest.raises(SystemExit):
        call(*arguments)
    assert message in capsys.readouterr().err
