# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
from pathlib import Path

import pytest
import torch

from mmsemi.engine.hooks import PseudoLabelMonitorHook

WARNING = 'The teacher has given no pseudo-label'


def train(runner_factory, counts, max_iters, teacher=None, **monitor):
    runner = runner_factory(
        max_iters=max_iters,
        model=dict(
            type='ToyTeacherStudent',
            counts=counts,
            teacher=dict(momentum=0.1, **(teacher or {}))),
        custom_hooks=[
            dict(type='mmsemi.TeacherUpdateHook'),
            dict(type='mmsemi.PseudoLabelMonitorHook', **monitor)
        ])
    runner.train()
    log = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
    scalars = Path(runner.log_dir, 'vis_data', 'scalars.json').read_text()
    return runner, log, [json.loads(line) for line in scalars.splitlines()]


def test_warns_once_per_patience(runner_factory):
    _, log, _ = train(runner_factory, [], 7, empty_patience=3)
    assert log.count(WARNING) == 2
    assert 'for 3 iterations (now 3)' in log
    assert 'for 6 iterations (now 6)' in log
    for cause in ('score_thr', 'burn_in_steps=0', 'momentum=0.1',
                  'batch statistics'):
        assert cause in log


def test_a_single_pseudo_label_resets_the_patience(runner_factory):
    _, log, _ = train(
        runner_factory, [0., 0., .25, 0., 0., 1., 0., 0.], 8, empty_patience=3)
    assert WARNING not in log


def test_burn_in_does_not_count(runner_factory):
    _, log, _ = train(
        runner_factory, [], 6, teacher=dict(burn_in_steps=4), empty_patience=3)
    assert WARNING not in log
    _, log, _ = train(
        runner_factory, [], 7, teacher=dict(burn_in_steps=4), empty_patience=3)
    assert 'for 3 iterations (now 7)' in log


def test_figures_reach_the_log_although_some_are_missing(runner_factory):
    """mean_score exists in the iterations 1, 2 and 5 only, with burn-in 2."""
    runner, log, scalars = train(
        runner_factory, [2., 0., 3.],
        6,
        teacher=dict(burn_in_steps=2),
        interval=2)
    lines = [line for line in log.splitlines() if 'Iter(train)' in line]
    assert len(lines) == 3
    assert 'pseudo/' not in lines[0] and 'teacher_distance' in lines[0]
    assert 'pseudo/per_image: 0.0000' in lines[1]
    assert [s.get('pseudo/per_image') for s in scalars] == [None, 0., 0.]
    assert [s.get('pseudo/mean_score') for s in scalars] == [None, .5, .5]
    history = runner.message_hub.get_scalar('train/pseudo/per_image').data[0]
    assert history.tolist() == [2., 0., 3., 0.]


def test_distance_is_that_of_the_weights(runner_factory):
    runner, _, scalars = train(runner_factory, [], 5, interval=2)
    distances = runner.message_hub.get_scalar('train/teacher_distance').data[0]
    assert len(distances) == 2
    assert [s['teacher_distance'] for s in scalars] == distances.tolist()
    assert distances[0] > 0
    model = runner.model
    gap = torch.cat([
        (t - s).flatten()
        for t, s in zip(model.teacher.parameters(), model.student.parameters())
    ])
    size = torch.cat([s.flatten() for s in model.student.parameters()])
    assert model.teacher_student_distance() == pytest.approx(
        float(gap.norm() / size.norm()))


def test_plain_model_is_refused(runner_factory):
    runner = runner_factory(
        model=dict(type='ToySegmenter'),
        custom_hooks=[dict(type='mmsemi.PseudoLabelMonitorHook')])
    with pytest.raises(TypeError, match='PseudoLabelMonitorHook needs'):
        runner.train()


@pytest.mark.parametrize('name', ['interval', 'empty_patience'])
@pytest.mark.parametrize('value', [0, -1, 1.5, None])
def test_bad_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f'PseudoLabelMonitorHook.{name}='):
        PseudoLabelMonitorHook(**{name: value})
