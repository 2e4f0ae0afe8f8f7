# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A killed training, resumed, equals one that was never killed."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ITERS, INTERVAL = 8, 4


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def assert_same(ours, theirs, where='checkpoint'):
    """Compare nested containers bit by bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f'{where}[{key!r}]')
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs)):
            assert_same(*pair, f'{where}[{i}]')
    else:
        assert ours == theirs, where


def histories(checkpoint):
    """Return all logged numbers but the times."""
    scalars = checkpoint['message_hub']['log_scalars']
    return {
        name: buffer.data[0].tolist()
        for name, buffer in scalars.items() if 'time' not in name
    }


def train_and_kill(tiny_training, work_dir, **settings):
    """Train in a process that dies after iteration 7, between two steps."""
    process = subprocess.run(
        [
            sys.executable, tiny_training.__file__,
            json.dumps(dict(work_dir=str(work_dir), kill_after=7, **settings))
        ],
        env={
            **os.environ, 'OMP_NUM_THREADS': '1',
            'PYTHONPATH': os.pathsep.join(sys.path)
        },
        capture_output=True,
        text=True,
        timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]
    assert sorted(p.name for p in work_dir.glob('*.pth')) == ['iter_4.pth']


@pytest.fixture(scope='module')
def whole(tiny_training, digits_root, tmp_path_factory):
    """Path: Work folder of an uninterrupted training without workers."""
    work_dir = tmp_path_factory.mktemp('whole')
    tiny_training.make_runner(
        digits_root, str(work_dir), max_iters=ITERS,
        interval=INTERVAL).train()
    return work_dir


@pytest.mark.parametrize('num_workers', [0, 2])
def test_resume_after_a_kill_is_exact(tiny_training, digits_root, whole,
                                      tmp_path, num_workers):
    settings = dict(
        data_root=digits_root,
        max_iters=ITERS,
        interval=INTERVAL,
        num_workers=num_workers)
    train_and_kill(tiny_training, tmp_path, **settings)
    assert_same(
        load(tmp_path / 'iter_4.pth')['state_dict'],
        load(whole / 'iter_4.pth')['state_dict'])
    tiny_training.make_runner(
        work_dir=str(tmp_path), resume=True, **settings).train()
    ours, theirs = (load(Path(d) / 'iter_8.pth') for d in (tmp_path, whole))
    assert int(ours['state_dict']['step']) == ITERS // 2
    for part in ('state_dict', 'optimizer', 'param_schedulers',
                 'mmsemi_seeds'):
        assert_same(ours[part], theirs[part], part)
    assert_same(histories(ours), histories(theirs), 'log')


def test_the_comparison_can_fail(tiny_training, digits_root, whole, tmp_path):
    """Another seed, and a training without the hook, come out otherwise."""
    runner = tiny_training.make_runner(
        digits_root, str(tmp_path), max_iters=ITERS, interval=INTERVAL)
    runner._hooks = [
        hook for hook in runner.hooks
        if type(hook).__name__ != 'IterSeedHook'
    ]
    runner.train()
    with pytest.raises(AssertionError):
        assert_same(
            load(tmp_path / 'iter_8.pth')['state_dict'],
            load(whole / 'iter_8.pth')['state_dict'])
