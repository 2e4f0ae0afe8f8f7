# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Guided distillation resumes bit by bit, whatever its phase."""
import copy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

ITERS, GUIDED_STEPS = 8, 2


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def part(state, prefix):
    return {
        key[len(prefix):]: value
        for key, value in state.items() if key.startswith(prefix)
    }


def differences(ours, theirs, where=''):
    """List where nested containers of tensors differ."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        return [
            text for key in ours
            for text in differences(ours[key], theirs[key], f'{where}/{key}')
        ]
    if isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        return [
            text for i, pair in enumerate(zip(ours, theirs))
            for text in differences(*pair, f'{where}/{i}')
        ]
    same = torch.equal(ours, theirs) if isinstance(
        ours, Tensor) else ours == theirs
    return [] if same else [where]


@pytest.fixture(scope='module')
def make_guided_runner(tiny_training, digits_root, tmp_path_factory):
    """callable: Runner of SOLOv2 on digits, two iterations per step."""
    init_default_scope('mmdet')
    config = tiny_training.model_config()
    torch.manual_seed(3)
    teacher = MODELS.build(config['segmentor'])
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save(dict(state_dict=teacher.state_dict()), path)
    config.update(
        type='mmsemi.GuidedDistillation',
        teacher=dict(
            checkpoint=str(path), guided_steps=GUIDED_STEPS, momentum=0.1))

    def make(work_dir):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny_training, 'model_config',
                          lambda _: copy.deepcopy(config))
            return tiny_training.make_runner(
                digits_root, str(work_dir), max_iters=ITERS, interval=2)

    make.teacher = teacher.state_dict()
    return make


@pytest.fixture(scope='module')
def whole(make_guided_runner, tmp_path_factory):
    """Path: Work folder of an uninterrupted training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    work_dir = tmp_path_factory.mktemp('whole')
    make_guided_runner(work_dir).train()
    torch.set_num_threads(threads)
    return work_dir


def test_phases_of_a_training(make_guided_runner, whole):
    states = {
        i: load(whole / f'iter_{i}.pth')['state_dict']
        for i in range(2, ITERS + 1, 2)
    }
    assert [int(state['step']) for state in states.values()] == [1, 2, 3, 4]
    # Frozen, copied, averaged.
    guided, switched, *averaged = states.values()
    assert differences(part(guided, 'teacher.'),
                       make_guided_runner.teacher) == []
    assert differences(part(guided, 'student.'), part(guided, 'teacher.'))
    assert differences(part(switched, 'student.'),
                       part(switched, 'teacher.')) == []
    before = part(switched, 'teacher.')
    for state in averaged:
        student, teacher = part(state, 'student.'), part(state, 'teacher.')
        for key, value in teacher.items():
            if value.is_floating_point():
                torch.testing.assert_close(
                    value, 0.9 * before[key] + 0.1 * student[key])
        before = teacher


@pytest.mark.parametrize('start', [2, 4, 6], ids=['guided', 'copied', 'ema'])
def test_resume_is_exact(make_guided_runner, whole, tmp_path, start):
    runner = make_guided_runner(tmp_path)
    runner._load_from, runner._resume = str(whole / f'iter_{start}.pth'), True
    runner.train()
    ours, theirs = (load(d / f'iter_{ITERS}.pth') for d in (tmp_path, whole))
    for name in ('state_dict', 'optimizer', 'param_schedulers'):
        assert differences(ours[name], theirs[name]) == [], name


def test_the_count_of_steps_decides_alone(make_guided_runner, whole,
                                          tmp_path):
    """Not the iteration: with one step less the copy comes a step later."""
    path = tmp_path / 'iter_2.pth'
    checkpoint = load(whole / 'iter_2.pth')
    checkpoint['state_dict']['step'] -= 1
    torch.save(checkpoint, path)
    runner = make_guided_runner(tmp_path / 'resumed')
    runner._load_from, runner._resume = str(path), True
    runner.train()
    state = load(tmp_path / 'resumed' / 'iter_4.pth')['state_dict']
    assert differences(part(state, 'student.'), part(state, 'teacher.'))
    assert differences(part(state, 'teacher.'),
                       make_guided_runner.teacher) == []
