# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Rounds that were stopped anywhere, resumed, end as if they never were."""
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope

from mmsemi.engine.loops import pseudo_mask_writer

LOOPS = dict(
    st=dict(
        type='mmsemi.SelfTrainingLoop', round_iters=[6, 8], select='best'),
    ratio=dict(
        type='mmsemi.SelfTrainingLoop', round_iters=6, source_ratio=[1, 1]),
    stpp=dict(
        type='mmsemi.SelfTrainingLoop', round_iters=6, select_reliable=True),
    gist=dict(
        type='mmsemi.IterativeSelfTrainingLoop',
        schedule='greedy',
        round_iters=6,
        stage_iters=4,
        stages=2,
        beam=2,
        held_out_fraction=.34),
    rist=dict(
        type='mmsemi.IterativeSelfTrainingLoop',
        schedule='random',
        round_iters=6,
        stage_iters=4,
        stages=3,
        seed=0),
    fist=dict(
        type='mmsemi.IterativeSelfTrainingLoop',
        schedule='fixed',
        round_iters=6,
        stage_iters=4,
        stages=2,
        reset_weights=True))
# Every fourth iteration, and the ends of rounds.
INTERVAL = 4


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


class Stopped(Exception):
    """Stands in for a kill."""


class StopHook(Hook):
    """Stop after an iteration, before its checkpoint is written."""

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.after:
            raise Stopped


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


def assert_same_end(ours, theirs):
    """Compare last checkpoints and all masks of two work folders."""
    name = (theirs / 'last_checkpoint').read_text().split('/')[-1]
    ours_end, theirs_end = load(ours / name), load(theirs / name)
    for part in ('state_dict', 'optimizer', 'param_schedulers',
                 'mmsemi_seeds'):
        assert_same(ours_end[part], theirs_end[part], part)
    hubs = [end['message_hub'] for end in (ours_end, theirs_end)]
    states = [hub['runtime_info']['self_training'] for hub in hubs]
    assert states[0]['finished']
    assert_same(*states)
    logs = [{
        key: buffer.data[0].tolist()
        for key, buffer in hub['log_scalars'].items() if 'time' not in key
    } for hub in hubs]
    assert logs[0]['train/loss']
    assert_same(*logs, 'log')
    files = [{
        path.relative_to(work_dir): path.read_bytes()
        for path in work_dir.glob('self_training/**/*')
        if path.suffix in ('.png', '.json')
    } for work_dir in (ours, theirs)]
    assert len(files[0]) >= 9
    assert files[0] == files[1]


@pytest.fixture(scope='module')
def whole(tiny_rounds, boxes_root, tmp_path_factory):
    """callable: Work folder of an uninterrupted training."""
    found = {}

    def train(name):
        if name not in found:
            found[name] = tmp_path_factory.mktemp(name)
            tiny_rounds.make_runner(
                boxes_root, found[name], LOOPS[name],
                interval=INTERVAL).train()
        return found[name]

    return train


@pytest.fixture
def stop_in_labeling(monkeypatch):
    """callable: Stop when so many masks are written; list of all written."""

    save = pseudo_mask_writer._save_mask

    def arrange(after):
        written = []

        def save_or_stop(label, path):
            if len(written) == after:
                raise Stopped
            save(label, path)
            written.append(path)

        monkeypatch.setattr(pseudo_mask_writer, '_save_mask', save_or_stop)
        return written

    return arrange


@pytest.mark.parametrize('name, after', [('st', 3), ('st', 11), ('stpp', 9),
                                         ('gist', 26), ('rist', 15),
                                         ('fist', 13)])
def test_stop_in_a_round(tiny_rounds, boxes_root, whole, tmp_path, name,
                         after):
    options = dict(loop=LOOPS[name], interval=INTERVAL)
    runner = tiny_rounds.make_runner(boxes_root, tmp_path, **options)
    runner.register_hook(StopHook(after))
    with pytest.raises(Stopped):
        runner.train()
    tiny_rounds.make_runner(
        boxes_root, tmp_path, resume=True, **options).train()
    assert_same_end(tmp_path, whole(name))


@pytest.mark.parametrize('name, after', [('st', 4), ('stpp', 12),
                                         ('gist', 13)])
def test_stop_in_labeling(tiny_rounds, boxes_root, whole, tmp_path,
                          stop_in_labeling, name, after):
    options = dict(loop=LOOPS[name], interval=INTERVAL)
    written = stop_in_labeling(after)
    with pytest.raises(Stopped):
        tiny_rounds.make_runner(boxes_root, tmp_path, **options).train()
    assert len(written) == after
    again = stop_in_labeling(10**9)
    tiny_rounds.make_runner(
        boxes_root, tmp_path, resume=True, **options).train()
    # Masks that were there are kept.
    assert not set(written) & set(again)
    assert_same_end(tmp_path, whole(name))


def test_masks_of_other_weights_are_made_anew(tiny_rounds, boxes_root, whole,
                                              tmp_path):
    """Such as those of a training before, in the same folder."""
    shutil.copytree(
        whole('stpp') / 'self_training', tmp_path / 'self_training')
    stale = tmp_path / 'self_training' / 'round_0' / 'masks' / 'stale.png'
    stale.write_bytes(b'')
    runner = tiny_rounds.make_runner(
        boxes_root, tmp_path, LOOPS['ratio'], randomness=dict(seed=1))
    runner.train()
    assert not stale.exists()


def test_resume_after_the_end_changes_nothing(tiny_rounds, boxes_root, whole,
                                              tmp_path):
    shutil.copytree(whole('gist'), tmp_path / 'copy')
    (tmp_path / 'copy' / 'last_checkpoint').unlink()
    end = whole('gist') / 'iter_30.pth'
    tiny_rounds.make_runner(
        boxes_root,
        tmp_path / 'copy',
        LOOPS['gist'],
        resume=True,
        load_from=str(end)).train()
    assert_same_end(tmp_path / 'copy', whole('gist'))


@pytest.mark.parametrize('change, message', [
    (dict(round_iters=8), 'rounds of'),
    (dict(type='mmsemi.SelfTrainingLoop', round_iters=6), 'masks|rounds'),
])
def test_resume_with_another_config_is_refused(tiny_rounds, boxes_root, whole,
                                               tmp_path, change, message):
    runner = tiny_rounds.make_runner(
        boxes_root,
        tmp_path, {
            **LOOPS['stpp'],
            **change
        },
        resume=True,
        load_from=str(whole('stpp') / 'iter_8.pth'))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runner.train()


def test_resume_without_the_masks_is_refused(tiny_rounds, boxes_root, whole,
                                             tmp_path):
    runner = tiny_rounds.make_runner(
        boxes_root,
        tmp_path,
        LOOPS['stpp'],
        resume=True,
        load_from=str(whole('stpp') / 'iter_8.pth'))
    with pytest.raises(FileNotFoundError, match='pseudo-mask .* is missing'):
        runner.train()


def test_resume_from_another_loop_is_refused(tiny_rounds, boxes_root,
                                             tmp_path):
    config = tiny_rounds.make_config(boxes_root, tmp_path, {})
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    tiny_rounds.Runner.from_cfg(config).train()
    runner = tiny_rounds.make_runner(
        boxes_root, tmp_path, LOOPS['stpp'], resume=True)
    with pytest.raises(ValueError, match='was not written by'):
        runner.train()


@pytest.mark.parametrize('where', [
    dict(kill_after=9),
    dict(kill_in_labeling=5),
])
def test_a_killed_process_with_workers(tiny_rounds, boxes_root, whole,
                                       tmp_path, where):
    settings = dict(
        root=boxes_root,
        work_dir=str(tmp_path),
        loop=LOOPS['ratio'],
        interval=INTERVAL,
        num_workers=2,
        **where)
    # No pipes, and a group of its own: torch's loader workers outlive a
    # killed parent and keep what they inherited open.
    with open(tmp_path / 'err', 'w') as err:
        process = subprocess.Popen(
            [sys.executable, tiny_rounds.__file__,
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
    log = (tmp_path / 'err').read_text()[-3000:]
    assert process.returncode == -signal.SIGKILL, log
    tiny_rounds.make_runner(
        boxes_root,
        tmp_path,
        LOOPS['ratio'],
        interval=INTERVAL,
        resume=True).train()
    assert_same_end(tmp_path, whole('ratio'))
