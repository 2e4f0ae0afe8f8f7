# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).resolve().parents[2] / \
    'tools/analysis/benchmark_matching.py'


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location('benchmark_matching', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(benchmark, monkeypatch):
    """callable: Runs the tool with arguments."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [TOOL.name, *arguments])
        benchmark.main()

    return run


SMALL = ('--proposals', '12', '--size', '32', '--iters', '2')


def test_all_ways_are_measured(call, capsys):
    call(*SMALL)
    printed = capsys.readouterr().out
    assert '12 proposals, 32 x 32 pixels; equal masks' in printed
    assert 'medians of 2 pairs' in printed
    for what in ('packed', 'packed, not measured', 'bool'):
        for strategy in ('iom', 'cpi'):
            assert f'{strategy}, {what} / loop' in printed
    assert torch.get_num_threads() == 2


def test_limits_are_checked(benchmark, call, monkeypatch, capsys):
    monkeypatch.setitem(benchmark.LIMITS, 'packed', 1e9)
    call('packed', '--check', *SMALL)
    monkeypatch.setitem(benchmark.LIMITS, 'packed', 1e-12)
    call('packed', *SMALL)
    assert 'Over the limit: iom, packed' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call('packed', '--check', *SMALL)


def test_other_masks_stop_it(benchmark, call, monkeypatch):
    monkeypatch.setattr(benchmark, 'match_proposals',
                        lambda pseudo, *args, **kwargs:
                        (~pseudo, torch.tensor(True)))
    with pytest.raises(RuntimeError, match='iom of packed masks differs'):
        call('packed', *SMALL)


def test_the_scene_has_something_to_find(benchmark):
    pseudo, masks = benchmark.make_masks(150, 96, torch.device('cpu'))
    assert masks.shape == (150, 96, 96) and masks.flatten(1).any(1).all()
    for strategy in benchmark.STRATEGIES:
        found, matched = benchmark.match_in_loop(pseudo, masks, strategy)
        assert matched and not found.equal(pseudo)


def test_the_limit_is_the_one_promised(benchmark):
    assert benchmark.LIMITS['packed'] == .05


@pytest.mark.parametrize('arguments, message', [
    (['nonsense'], "unknown parts ['nonsense']"),
    (['--proposals', '0'], 'start at 1'),
    (['--size', '8'], '--size at 16'),
    (['--device', 'cuda', '--clock', 'cpu'], 'another device'),
])
def test_bad_arguments_are_named(call, capsys, arguments, message):
    with pytest.raises(SystemExit):
        call(*arguments)
    assert message in capsys.readouterr().err
