# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import random

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook

from mmsemi.engine.hooks import IterSeedHook, iter_seed_hook


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


class DrawHook(Hook):
    """Draw after every iteration, as a model would within it."""

    def __init__(self, disturb=0):
        self.drawn = []
        self.disturb = disturb

    def after_train_iter(self,
                         runner,
                         batch_idx,
                         data_batch=None,
                         outputs=None):
        self.drawn.append(draws())
        for _ in range(self.disturb):
            draws()


def train(runner_factory, disturb=0, hook=None, **changes):
    recorder = DrawHook(disturb)
    runner = runner_factory(
        custom_hooks=[
            dict(type='mmsemi.TeacherUpdateHook'), hook
            or dict(type='mmsemi.IterSeedHook'), recorder
        ],
        **changes)
    runner.train()
    return recorder.drawn


def test_randomness_depends_on_the_iteration_alone(runner_factory):
    plain = train(runner_factory, max_iters=4)
    disturbed = train(runner_factory, max_iters=4, disturb=7)
    assert plain == disturbed
    assert len(set(plain)) == 4
    assert len({d for drawn in plain for d in drawn}) == 12
    other = train(runner_factory, max_iters=4, randomness=dict(seed=1))
    assert not set(plain) & set(other)


def test_own_seed_wins_over_the_runners(runner_factory):
    hook = dict(type='mmsemi.IterSeedHook', seed=5)
    first = train(runner_factory, max_iters=2, hook=hook)
    second = train(
        runner_factory, max_iters=2, hook=hook, randomness=dict(seed=1))
    assert first == second
    # The runner's seed is 0.
    assert first != train(runner_factory, max_iters=2)


def test_numbers_stay_what_they_are(runner_factory):
    """Checkpoints of this release must resume exactly with the next."""
    first, second = train(runner_factory, max_iters=2)
    words = np.random.SeedSequence(0, spawn_key=(0, 1)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))
    assert second == draws()
    assert first != second


def test_ranks_differ(runner_factory, monkeypatch):
    first = train(runner_factory, max_iters=2)
    monkeypatch.setattr(iter_seed_hook, 'get_rank', lambda: 1)
    assert not set(first) & set(train(runner_factory, max_iters=2))


@pytest.mark.parametrize('seed', [None, 3])
def test_resume_takes_both_seeds_from_the_checkpoint(runner_factory, tmp_path,
                                                     seed):
    """Also if no seed was set: then every start of a runner draws one."""
    changes = dict(
        max_iters=6,
        randomness=dict(seed=seed),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=2,
                            by_epoch=False)))
    whole = train(runner_factory, work_dir=tmp_path / 'whole', **changes)
    resumed = train(
        runner_factory,
        work_dir=tmp_path / 'resumed',
        load_from=str(tmp_path / 'whole' / 'iter_2.pth'),
        resume=True,
        **changes)
    assert resumed == whole[2:]
    ours, theirs = (
        torch.load(tmp_path / name / 'iter_6.pth', weights_only=False)
        for name in ('resumed', 'whole'))
    assert ours['mmsemi_seeds'] == theirs['mmsemi_seeds']
    # The order of the data came from the same seed.
    for key, value in theirs['state_dict'].items():
        assert torch.equal(ours['state_dict'][key], value), key


def test_loading_weights_takes_no_seed(runner_factory, tmp_path):
    train(runner_factory, work_dir=tmp_path / 'first', max_iters=2)
    fresh = train(runner_factory, max_iters=2, randomness=dict(seed=1))
    loaded = train(
        runner_factory,
        max_iters=2,
        randomness=dict(seed=1),
        load_from=str(tmp_path / 'first' / 'iter_2.pth'))
    assert loaded == fresh


@pytest.mark.parametrize('seed', [-1, 1.5, True, 'x'])
def test_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match='IterSeedHook.seed=.*whole numbers'):
        IterSeedHook(seed)
