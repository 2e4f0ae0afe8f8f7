# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPERS

from mmsemi.engine.hooks import TeacherUpdateHook
from mmsemi.engine.hooks.teacher_update_hook import teacher_student


class Recorder:
    """Note student and teacher after each iteration."""

    def __init__(self):
        self.states = []

    def __call__(self, runner):
        self.states.append(copy.deepcopy(runner.model.state_dict()))

    def values(self, name):
        return [state[name] for state in self.states]


def train(runner_factory, call_hook, **changes):
    recorder = Recorder()
    runner = runner_factory(
        custom_hooks=[
            dict(type='mmsemi.TeacherUpdateHook'),
            call_hook(recorder)
        ],
        **changes)
    start = copy.deepcopy(runner.model.state_dict())
    runner.train()
    return runner, start, recorder


def expected_teacher(start, students, momenta):
    teacher = start
    for student, momentum in zip(students, momenta):
        teacher = (1 - momentum) * teacher + momentum * student
    return teacher


def test_every_iteration_is_a_step_without_accumulation(
        runner_factory, call_hook):
    _, start, recorder = train(
        runner_factory,
        call_hook,
        max_iters=4,
        model=dict(
            type='ToyTeacherStudent',
            teacher=dict(momentum=0.1, warm_up_gamma=0)))
    for name in ('head.weight', 'backbone.weight', 'backbone.running_mean'):
        students = recorder.values(f'student.{name}')
        assert not torch.equal(students[-1], start[f'student.{name}'])
        torch.testing.assert_close(
            recorder.values(f'teacher.{name}')[-1],
            expected_teacher(start[f'teacher.{name}'], students, [0.1] * 4))
    assert [int(v) for v in recorder.values('step')] == [1, 2, 3, 4]


def test_accumulation_moves_the_teacher_at_steps_only(runner_factory,
                                                      call_hook):
    _, start, recorder = train(
        runner_factory,
        call_hook,
        max_iters=9,
        model=dict(
            type='ToyTeacherStudent',
            teacher=dict(momentum=0.1, warm_up_gamma=1)),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.1), accumulative_counts=4),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=4,
                            by_epoch=False)))
    # The runner also steps in its last iteration.
    assert [int(v)
            for v in recorder.values('step')] == [0, 0, 0, 1, 1, 1, 1, 2, 3]
    name = 'head.weight'
    students = recorder.values(f'student.{name}')
    teachers = recorder.values(f'teacher.{name}')
    for i in (0, 1, 2):
        assert torch.equal(teachers[i], start[f'teacher.{name}'])
    for i in (4, 5, 6):
        assert torch.equal(teachers[i], teachers[3])
    # Warm-up: the k-th update uses 1 / (1 + k), here 1/2, 1/3 and 1/4.
    torch.testing.assert_close(
        teachers[8],
        expected_teacher(start[f'teacher.{name}'],
                         [students[3], students[7], students[8]],
                         [1 / 2, 1 / 3, 1 / 4]))
    # Batch statistics move in every iteration, the teacher's only at steps.
    means = recorder.values('student.backbone.running_mean')
    assert not torch.equal(means[0], means[1])
    assert torch.equal(
        recorder.values('teacher.backbone.running_mean')[2],
        start['teacher.backbone.running_mean'])


@OPTIM_WRAPPERS.register_module(force=True)
class ScaledOnCPU(AmpOptimWrapper):
    """mmengine's AMP wrapper, whose constructor insists on a GPU."""

    def __init__(self, init_scale=1.0, growth_interval=2000, **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        self.cast_dtype = torch.bfloat16
        self.loss_scaler = torch.amp.GradScaler(
            'cpu', init_scale=init_scale, growth_interval=growth_interval)


@pytest.mark.parametrize('optimizer', [
    dict(type='SGD', lr=0.1),
    dict(type='AdamW', lr=0.1, fused=True),
])
def test_a_step_skipped_for_overflow_is_no_step(runner_factory, call_hook,
                                                optimizer):

    def overflow_once(runner):
        if runner.iter == 1:
            scaler = runner.optim_wrapper.loss_scaler
            scaler.update(float('inf'))
        if runner.iter == 2:
            runner.optim_wrapper.loss_scaler.update(1.)

    recorder = Recorder()
    runner = runner_factory(
        max_iters=4,
        optim_wrapper=dict(type='ScaledOnCPU', optimizer=optimizer),
        custom_hooks=[
            dict(type='mmsemi.TeacherUpdateHook'),
            call_hook(recorder),
            call_hook(overflow_once)
        ])
    runner.train()
    students = recorder.values('student.head.weight')
    teachers = recorder.values('teacher.head.weight')
    assert torch.equal(students[1], students[2])
    assert torch.equal(teachers[1], teachers[2])
    assert not torch.equal(students[2], students[3])
    assert not torch.equal(teachers[2], teachers[3])
    assert [int(v) for v in recorder.values('step')] == [1, 2, 2, 3]


def test_resume_continues_the_average(runner_factory, call_hook, tmp_path):
    hooks = dict(
        checkpoint=dict(type='CheckpointHook', interval=4, by_epoch=False))
    model = dict(
        type='ToyTeacherStudent', teacher=dict(momentum=0.1, burn_in_steps=2))
    changes = dict(max_iters=8, default_hooks=hooks, model=model)
    _, _, whole = train(
        runner_factory, call_hook, work_dir=tmp_path / 'whole', **changes)
    _, _, resumed = train(
        runner_factory,
        call_hook,
        work_dir=tmp_path / 'resumed',
        load_from=str(tmp_path / 'whole' / 'iter_4.pth'),
        resume=True,
        **changes)
    assert len(resumed.states) == 4
    for ours, theirs in zip(resumed.states, whole.states[4:]):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key


def test_several_optimizers_make_one_update(runner_factory):
    runner = runner_factory(custom_hooks=[])
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    student = runner.model.student
    runner.optim_wrapper = OptimWrapperDict(
        **{
            name: OptimWrapper(torch.optim.SGD(module.parameters(), lr=0.1))
            for name, module in student.named_children()
            if name != 'data_preprocessor'
        })
    hook = TeacherUpdateHook()
    hook.before_train(runner)

    def step(*names):
        student.loss(list(torch.randn(4, 4)))['loss'].backward()
        for name in names:
            runner.optim_wrapper[name].step()
        hook.after_train_iter(runner, 0)
        return int(runner.model.step)

    assert [step('backbone', 'head'), step(), step('head')] == [1, 1, 2]
    hook.after_train(runner)
    assert step('head') == 2


def test_distributed_wrapper_is_looked_through(runner_factory):

    class Wrapped(MMDistributedDataParallel):

        def __init__(self, module):
            torch.nn.Module.__init__(self)
            self.module = module

    runner = runner_factory()
    model = runner.model
    runner.model = Wrapped(model)
    assert teacher_student(runner, 'Test') is model


def test_model_without_teacher_is_refused(runner_factory):
    runner = runner_factory(model=dict(type='ToySegmenter'))
    with pytest.raises(
            TypeError,
            match='TeacherUpdateHook needs a model '
            'with teacher and student.*ToySegmenter'):
        runner.train()


@pytest.mark.parametrize('other', [
    dict(type='EMAHook'),
    dict(type='mmdet.MeanTeacherHook'),
    dict(type='mmsemi.TeacherUpdateHook')
])
def test_second_average_is_refused(runner_factory, other):
    runner = runner_factory(
        custom_hooks=[dict(type='mmsemi.TeacherUpdateHook'), other])
    name = other['type'].rpartition('.')[2]
    with pytest.raises(ValueError, match=f'{name} beside TeacherUpdateHook'):
        runner.train()


def test_optimizer_that_hides_its_steps_is_refused(runner_factory):
    runner = runner_factory(custom_hooks=[])
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = OptimWrapper(
        torch.optim.SGD(runner.model.parameters(), lr=0.1))
    runner.optim_wrapper.optimizer = object()
    with pytest.raises(TypeError, match='cannot see the steps of object'):
        TeacherUpdateHook().before_train(runner)
