# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Semantic methods, killed and resumed, equal those never killed."""
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

# Draws in mixing, dropout of features, and thresholds that move.
MODEL = dict(
    type='mmsemi.UniMatchV2',
    teacher=dict(momentum=.1),
    mix=dict(type='mmsemi.CutMix', prob=.8),
    pseudo_label_pipeline=[
        dict(
            type='mmsemi.KeepAboveAdaptiveThreshold',
            initial_thr=.3,
            momentum=.1)
    ])


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


@pytest.fixture(scope='module')
def tiny():
    """module: ``tiny_semantic_training.py`` beside this file."""
    path = Path(__file__).with_name('tiny_semantic_training.py')
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def root(tiny, tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp('boxes'))


def kill(tiny, settings):
    """Train in another process until it kills itself."""
    with open(Path(settings['work_dir'], 'err'), 'w') as err:
        process = subprocess.Popen(
            [sys.executable, tiny.__file__,
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
    log = Path(settings['work_dir'], 'err').read_text()[-3000:]
    assert process.returncode == -signal.SIGKILL, log


def test_resume_after_a_kill_is_exact(tiny, root, tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    killed.mkdir()
    tiny.make_runner(root, whole, MODEL).train()
    kill(
        tiny,
        dict(
            root=root,
            work_dir=str(killed),
            model=MODEL,
            num_workers=2,
            kill_after=7))
    assert [path.name for path in killed.glob('*.pth')] == ['iter_4.pth']
    assert_same(
        load(killed / 'iter_4.pth')['state_dict'],
        load(whole / 'iter_4.pth')['state_dict'])
    resumed = tmp_path / 'resumed'
    resumed.mkdir()
    for name in ('iter_4.pth', 'last_checkpoint'):
        shutil.copy(killed / name, resumed)
    tiny.make_runner(root, resumed, MODEL, resume=True).train()
    ours, theirs = (load(d / 'iter_8.pth') for d in (resumed, whole))
    threshold = 'pseudo_label_pipeline.stages.0.threshold'
    assert theirs['state_dict'][threshold] != pytest.approx(.3, abs=1e-3)
    for part in ('state_dict', 'optimizer', 'param_schedulers',
                 'mmsemi_seeds'):
        assert_same(ours[part], theirs[part], part)
    assert_same(histories(ours), histories(theirs), 'log')
    assert all(value > 0 for value in histories(ours)[
        'train/unsup_loss_s1'])
