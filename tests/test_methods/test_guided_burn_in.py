# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A trained teacher guides the burn-in, on a segmenter of one weight."""
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmsemi.methods import TeacherSettings, TeacherStudent


@ROOT_MODELS.register_module(force=True)
class ScalarSegmenter(BaseModel):
    """Loss: weight x mean of the images; trained from a weight of 0."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        self.weight = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.ones(1))
        self.register_buffer('mean', torch.zeros(1))
        self.register_buffer('count', torch.tensor(0))

    def init_weights(self):
        self.weight.data.fill_(0)

    def loss(self, inputs, data_samples):
        return dict(loss=(self.weight * inputs.mean()).sum())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self


class ScalarMethod(TeacherStudent):
    """Labels are the teacher's weight."""

    def label_unlabeled(self, inputs, data_samples):
        return [self.teacher.weight.item() for _ in inputs]

    def loss_by_pseudo_labels(self, inputs, data_samples, pseudo_labels):
        self.received = pseudo_labels
        return self.student.loss(inputs['unsup_student'], None), 1.


def plain_state(weight=10., mean=6., count=7, **extra):
    segmenter = ScalarSegmenter()
    segmenter.weight.data.fill_(weight)
    segmenter.mean.fill_(mean)
    segmenter.count.fill_(count)
    return dict(segmenter.state_dict(), **extra)


def saved(tmp_path, state, name='teacher.pth'):
    path = str(tmp_path / name)
    torch.save(dict(state_dict=state), path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """str: A trained segmenter of weight 10."""
    return saved(tmp_path, plain_state())


def build(checkpoint, guided_steps=3, init=True, **settings):
    teacher = dict(
        momentum=0.1,
        warm_up_gamma=0,
        guided_steps=guided_steps,
        checkpoint=checkpoint)
    model = ScalarMethod(
        dict(
            type='ScalarSegmenter',
            data_preprocessor=dict(type='BaseDataPreprocessor')),
        teacher=dict(teacher, **settings))
    if init:
        model.init_weights()
    return model


def take_steps(model, steps):
    """Return the teacher's weight in the iterations after some steps.

    After step i the student's weight is i.
    """
    used = []
    for step in steps:
        model.student.weight.data.fill_(step)
        model.update_teacher()
        used.append(model.teacher.weight.item())
    return used


def batch():
    inputs = dict(
        sup=torch.full((1, 4), 2.),
        unsup_teacher=torch.full((2, 4), 7.),
        unsup_student=torch.full((2, 4), 3.))
    return inputs, {view: [view] * len(x) for view, x in inputs.items()}


# Settings ------------------------------------------------------------------


@pytest.mark.parametrize('config, message', [
    (dict(guided_steps=3), 'teacher.guided_steps=3 needs a trained teacher: '
     'set teacher.checkpoint'),
    (dict(guided_steps=3, checkpoint=''), 'needs a trained teacher'),
    (dict(guided_steps=3, checkpoint='x.pth', burn_in_steps=2),
     'burn-in of its own; .* got 2 and False'),
    (dict(guided_steps=3, checkpoint='x.pth', average_burn_in=True),
     'burn-in of its own; .* got 0 and True'),
    (dict(guided_steps=3, checkpoint='x.pth', mode='frozen'),
     "needs teacher.mode='ema', got 'frozen'"),
    (dict(guided_steps=3, mode='student'),
     "needs teacher.mode='ema', got 'student'"),
    (dict(guided_steps=-1), 'teacher.guided_steps=-1; .* whole numbers'),
    (dict(guided_steps=1.5), 'teacher.guided_steps=1.5'),
    (dict(burn_in_steps=3, checkpoint='x.pth'),
     'guided_steps in the place of burn_in_steps'),
])
def test_settings_that_contradict_each_other(config, message):
    with pytest.raises(ValueError, match=message):
        TeacherSettings.from_config(config)


def test_a_guided_burn_in_is_no_burn_in_on_labels_alone():
    settings = TeacherSettings(guided_steps=3, checkpoint='x.pth')
    assert not settings.copies_after_burn_in
    assert settings.burn_in_steps == 0


# The schedule --------------------------------------------------------------


def test_teacher_of_each_iteration(checkpoint):
    """Group F: mmdet's hook would start with 0, the student's weight."""
    model = build(checkpoint)
    used = [model.teacher.weight.item()] + take_steps(model, range(1, 6))
    assert used == pytest.approx([10, 10, 10, 3, 3.1, 3.29], abs=1e-6)
    assert used[:3] == [10, 10, 10] and used[3] == 3


@pytest.mark.parametrize('name', ['mean', 'count'])
def test_buffers_are_kept_copied_and_averaged(checkpoint, name):
    model = build(checkpoint, guided_steps=2)
    before = getattr(model.teacher, name).clone()
    buffer = getattr(model.student, name)
    found = []
    for value in (1, 2, 12):
        buffer.fill_(value)
        model.update_teacher()
        found.append(getattr(model.teacher, name).item())
    # Integers are copied, as in every update.
    assert found == pytest.approx(
        [before.item(), 2, 3 if name == 'mean' else 12])


def test_teacher_is_the_checkpoint_bit_by_bit(tmp_path):
    state = plain_state(weight=0.1, mean=1 / 3, count=5)
    model = build(saved(tmp_path, state), guided_steps=4)
    take_steps(model, range(1, 4))
    assert model.guided
    for key, value in state.items():
        assert torch.equal(model.teacher.state_dict()[key], value)
    model.student.mean.fill_(0.7)
    take_steps(model, [0.3])
    assert not model.guided
    for key, value in model.student.state_dict().items():
        assert torch.equal(model.teacher.state_dict()[key], value)


def test_student_starts_as_ever(checkpoint):
    model = build(checkpoint)
    assert model.student.weight.item() == 0.
    assert model.student.mean.item() == 0.
    assert model.teacher.weight.item() == 10.
    assert not model.teacher.weight.requires_grad


def test_momentum_may_warm_up_after_the_copy(checkpoint):
    model = build(checkpoint, guided_steps=1, warm_up_gamma=1.)
    # A copy, then momenta 1/2 and 1/3.
    assert take_steps(model, [1, 2, 3]) == pytest.approx([1, 1.5, 2])


def test_student_learns_from_both_from_the_first_step(checkpoint):
    model = build(checkpoint, guided_steps=2)
    received = []
    for step in (1, 2, 3):
        losses = model.loss(*batch())
        assert set(losses) == {'sup_loss', 'unsup_loss'}
        assert losses['unsup_loss'].requires_grad
        received += model.received
        take_steps(model, [step])
    assert received == [10., 10., 10., 10., 2., 2.]


def test_views_are_needed_from_the_first_step(checkpoint):
    inputs, samples = batch()
    del inputs['unsup_teacher']
    with pytest.raises(ValueError, match=r"lacks the views \['unsup_teach"):
        build(checkpoint).loss(inputs, samples)


def test_a_weight_ramp_starts_with_the_training(checkpoint):
    model = ScalarMethod(
        dict(
            type='ScalarSegmenter',
            data_preprocessor=dict(type='BaseDataPreprocessor')),
        teacher=dict(guided_steps=3, checkpoint=checkpoint),
        unsup_weight=dict(weight=4., ramp='linear', ramp_steps=4))
    model.init_weights()
    weights = []
    for _ in range(6):
        model.student.weight.data.fill_(1.)
        weights.append(float(model.loss(*batch())['unsup_loss']) / 3)
        model.update_teacher()
    assert weights == [0., 1., 2., 3., 4., 4.]


def test_who_predicts(checkpoint):
    model = build(checkpoint, guided_steps=1)
    for _ in range(3):
        assert not model.burning_in
        assert model.predictor is model.teacher
        model.update_teacher()
    model.predict_on = 'student'
    assert model.predictor is model.student


# Weights -------------------------------------------------------------------


def test_phase_is_in_the_checkpoint_alone(checkpoint):
    model = build(checkpoint)
    take_steps(model, [1, 2])
    # The teacher's file is not needed for it, nor is an iteration count.
    resumed = build(checkpoint, init=False)
    resumed.load_state_dict(model.state_dict())
    assert resumed.guided and resumed.step == 2
    resumed.loss(*batch())
    assert take_steps(resumed, [3, 4]) == take_steps(model, [3, 4])
    again = build(checkpoint)
    again.load_state_dict(resumed.state_dict())
    assert not again.guided
    assert take_steps(again, [5]) == take_steps(model, [5])


def test_checkpoint_of_a_semi_supervised_model(checkpoint, tmp_path):
    other = build(checkpoint, guided_steps=1)
    take_steps(other, [1, 2])
    path = saved(tmp_path, other.state_dict(), 'semi.pth')
    model = build(path)
    assert model.teacher.weight.equal(other.teacher.weight)
    assert model.student.weight.item() == 0.
    # Its count of steps does not become ours.
    assert model.step == 0 and model.guided


def test_load_from_is_for_the_student(checkpoint):
    model = build(checkpoint)
    model.load_state_dict(plain_state(weight=7.))
    assert model.student.weight.item() == 7.
    assert model.teacher.weight.item() == 10.
    assert model.step == 0 and model.guided


def test_a_student_alone_leaves_the_guide(checkpoint):
    model = build(checkpoint)
    state = plain_state(weight=7.)
    model.load_state_dict(
        {f'student.{key}': value
         for key, value in state.items()}, strict=False)
    assert model.student.weight.item() == 7.
    assert model.teacher.weight.item() == 10.


def test_a_missing_checkpoint_is_named(tmp_path):
    path = str(tmp_path / 'gone.pth')
    with pytest.raises(FileNotFoundError, match='teacher.checkpoint=.*gone'):
        build(path)


def test_a_guide_must_be_complete(tmp_path):
    state = plain_state()
    del state['bias']
    path = saved(tmp_path, state)
    with pytest.raises(RuntimeError, match="lacks 1 of 2 .*'bias'"):
        build(path)
    # Another teacher may be loaded in parts, as before.
    build(path, guided_steps=0)
    # Buffers are no matter of training.
    state = plain_state()
    del state['mean']
    build(saved(tmp_path, state))


def test_a_forgotten_initialisation_is_no_guide(checkpoint):
    model = build(checkpoint, init=False)
    with pytest.raises(RuntimeError, match='guided_steps=3.*init_weights'):
        model.loss(*batch())
