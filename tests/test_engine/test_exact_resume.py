# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A killed training, resumed, equals one that was never killed."""
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

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


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Sum in the same order here and in the process that is killed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def whole(tiny_training, digits_root, tmp_path_factory):
    """Path: Work folder of an uninterrupted training without workers."""
    work_dir = tmp_path_factory.mktemp('whole')
    tiny_training.make_runner(
        digits_root, str(work_dir), max_iters=ITERS,
        interval=INTERVAL).train()
    return work_dir


@pytest.fixture(scope='module')
def killed(tiny_training, digits_root, tmp_path_factory):
    """Path: Work folder of a training with workers that was killed.

    It died after iteration 7, between two optimizer steps.
    """
    work_dir = tmp_path_factory.mktemp('killed')
    settings = dict(
        data_root=digits_root,
        work_dir=str(work_dir),
        max_iters=ITERS,
        interval=INTERVAL,
        num_workers=2,
        kill_after=7)
    # No pipes, and a group of its own: torch's loader workers outlive a
    # killed parent and keep what they inherited open.
    with open(work_dir / 'err', 'w') as err:
        process = subprocess.Popen(
            [sys.executable, tiny_training.__file__,
             json.dumps(settings)],
            env={
                **os.environ, 'OMP_NUM_THREADS': '1',
                'PYTHONPATH': os.pathsep.join(sys.path)
            },
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True)
        try:
            process.wait(timeout=300)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    log = (work_dir / 'err').read_text()[-3000:]
    assert process.returncode == -signal.SIGKILL, log
    assert [p.name for p in work_dir.glob('*.pth')] == ['iter_4.pth']
    return work_dir


@pytest.mark.parametrize('num_workers', [0, 2])
def test_resume_after_a_kill_is_exact(tiny_training, digits_root, whole,
                                      killed, tmp_path, num_workers):
    assert_same(
        load(killed / 'iter_4.pth')['state_dict'],
        load(whole / 'iter_4.pth')['state_dict'])
    for name in ('iter_4.pth', 'last_checkpoint'):
        shutil.copy(killed / name, tmp_path)
    tiny_training.make_runner(
        digits_root,
        str(tmp_path),
        max_iters=ITERS,
        interval=INTERVAL,
        num_workers=num_workers,
        resume=True).train()
    ours, theirs = (load(d / 'iter_8.pth') for d in (tmp_path, whole))
    assert int(ours['state_dict']['step']) == ITERS // 2
    for part in ('state_dict', 'optimizer', 'param_schedulers',
                 'mmsemi_seeds'):
        assert_same(ours[part], theirs[part], part)
    assert_same(histories(ours), histories(theirs), 'log')


def test_the_comparison_can_fail(tiny_training, digits_root, whole, tmp_path):
    """Without seeded iterations the same training comes out otherwise."""
    runner = tiny_training.make_runner(
        digits_root, str(tmp_path), max_iters=ITERS, interval=INTERVAL)
    runner._hooks = [
        hook for hook in runner.hooks if type(hook).__name__ != 'IterSeedHook'
    ]
    runner.train()
    with pytest.raises(AssertionError):
        assert_same(
            load(tmp_path / 'iter_8.pth')['state_dict'],
            load(whole / 'iter_8.pth')['state_dict'])
