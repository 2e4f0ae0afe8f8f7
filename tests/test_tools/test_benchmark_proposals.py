# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

TOOL = Path(__file__).resolve().parents[2] / \
    'tools/analysis/benchmark_proposals.py'
SMALL = ('--masks', '9', '--images', '2', '--size', '24', '32', '--iters', '1')


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location('benchmark_proposals', TOOL)
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


def test_runs_are_those_of_the_released_code(benchmark):
    # Numbers of the released layout.
    mask = np.array([[1, 1, 0], [1, 1, 0]], bool)
    assert benchmark.to_runs(mask) == [1, 4]
    other = np.array([[0, 0, 1], [0, 1, 1], [0, 0, 1]], bool)
    assert benchmark.to_runs(other) == [5, 1, 7, 3]
    for m in (mask, other, ~other):
        np.testing.assert_array_equal(
            benchmark.from_runs(benchmark.to_runs(m), [*m.shape]), m)


def test_all_readers_give_the_same_masks(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [TOOL.name, *SMALL])
    files = benchmark.Files(tmp_path, benchmark.parse_args())
    files.turn = lambda: 1
    expected = files.masks[1]
    np.testing.assert_array_equal(files.read_json(), expected)
    np.testing.assert_array_equal(
        files.read_json_masks().transpose(2, 0, 1).astype(bool), expected)
    np.testing.assert_array_equal(
        files.store.read('1.jpg').packed().to_bool().numpy(), expected)
    assert files.read_store().shape == (2, 24, 32)


def test_parts_and_limits(benchmark, call, monkeypatch, capsys):
    for limits in (benchmark.LIMITS, benchmark.SIZE_LIMITS):
        for name in limits:
            monkeypatch.setitem(limits, name, 1e9)
    call(*SMALL, '--check')
    printed = capsys.readouterr().out
    assert '9 masks of 24 x 32 pixels' in printed
    assert 'read: store / JSON an image' in printed
    assert 'write: store / JSON an image' in printed
    assert 'Bytes an image: store' in printed
    monkeypatch.setitem(benchmark.SIZE_LIMITS, 'image', 1e-9)
    call(*SMALL, 'read_masks')
    with pytest.raises(SystemExit):
        call(*SMALL, 'read_masks', '--check')


@pytest.mark.parametrize('arguments, words', [
    (['nonsense'], "unknown parts ['nonsense']"),
    (['--masks', '0'], 'start at 1'),
])
def test_bad_arguments_are_named(call, capsys, arguments, words):
    with pytest.raises(SystemExit):
        call(*arguments)
    assert words in capsys.readouterr().err
