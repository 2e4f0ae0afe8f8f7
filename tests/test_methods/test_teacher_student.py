# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The core of all methods, on a segmenter of one weight."""
import copy
import io
import math

import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel, ImgDataPreprocessor
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner.checkpoint import load_checkpoint, load_state_dict
from torch import nn

from mmsemi.methods import (TeacherSettings, TeacherStudent, scale_losses,
                            teacher_student)
from mmsemi.models import MultiBranchDataPreprocessor


@ROOT_MODELS.register_module(force=True)
class OneWeightSegmenter(BaseModel):
    """Loss: weight x mean of the images, and twice the weight."""

    def __init__(self, options=None, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        # As some of mmdet's models do with what they are given.
        self.size = (options or dict(size=1)).pop('size')
        self.weight = nn.Parameter(torch.ones(self.size))
        self.register_buffer('mean', torch.zeros(1))
        self.register_buffer('count', torch.tensor(0))
        self.calls = []

    def init_weights(self):
        self.weight.data.fill_(5)

    def loss(self, inputs, data_samples):
        self.calls.append((inputs, data_samples))
        self.count += 1
        return dict(
            loss_a=(self.weight * inputs.mean()).sum(),
            loss_b=[self.weight.sum(), self.weight.sum()],
            acc=torch.tensor(0.25))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self, mode, inputs, data_samples


class ToyMethod(TeacherStudent):
    """Labels are the teacher's weights; the loss is the segmenter's."""

    factor = 1.

    def label_unlabeled(self, inputs, data_samples):
        assert not self.teacher.training
        return [self.teacher.weight.item() for _ in inputs]

    def loss_by_pseudo_labels(self, inputs, data_samples, pseudo_labels):
        self.received = (data_samples['unsup_student'], pseudo_labels,
                         data_samples['unsup_teacher'])
        return self.student.loss(inputs['unsup_student'],
                                 self.received[0]), self.factor

    def pseudo_label_figures(self, pseudo_labels, teacher_samples):
        return {'pseudo/sum': torch.tensor(sum(pseudo_labels))}


SEGMENTOR = dict(
    type='OneWeightSegmenter',
    data_preprocessor=dict(type='BaseDataPreprocessor'))


def build(segmentor=SEGMENTOR, **kwargs):
    return ToyMethod(segmentor, **kwargs)


def set_student(model, weight=None, mean=None, count=None):
    with torch.no_grad():
        for name, value in (('weight', weight), ('mean', mean), ('count',
                                                                 count)):
            if value is not None:
                getattr(model.student, name).fill_(value)


def teacher_weights(model, students):
    """The teacher's weight after each update of a student of given weight."""
    trace = []
    for weight in students:
        set_student(model, weight)
        model.update_teacher()
        trace.append(model.teacher.weight.item())
    return trace


def batch(sup=2., student=3.):
    inputs = dict(
        sup=torch.full((1, 4), sup),
        unsup_teacher=torch.full((2, 4), 7.),
        unsup_student=torch.full((2, 4), student))
    samples = dict(
        sup=['s'], unsup_teacher=['t0', 't1'], unsup_student=['u0', 'u1'])
    return inputs, samples


@pytest.fixture
def messages(monkeypatch):
    """What the core logs."""
    found = []
    monkeypatch.setattr(teacher_student, 'print_log',
                        lambda text, **kwargs: found.append(text))
    return found


# Settings ------------------------------------------------------------------


def test_settings_defaults():
    expected = TeacherSettings('ema', 0.001, 1., 0, False, None)
    assert TeacherSettings.from_config(None) == expected
    assert TeacherSettings.from_config({}) == expected


@pytest.mark.parametrize('config, message', [
    (dict(mode='mean'), "teacher.mode='mean'; allowed are 'ema', 'frozen' and "
     "'student'"),
    (dict(momentum=0), 'teacher.momentum=0; .* momentum=0.001'),
    (dict(momentum=1.1), 'teacher.momentum=1.1'),
    (dict(momentum=math.nan), 'teacher.momentum=nan'),
    (dict(momentum='0.1'), "teacher.momentum='0.1'"),
    (dict(warm_up_gamma=-1), 'teacher.warm_up_gamma=-1'),
    (dict(warm_up_gamma=math.inf), 'teacher.warm_up_gamma=inf'),
    (dict(burn_in_steps=-1), 'teacher.burn_in_steps=-1'),
    (dict(burn_in_steps=2.5), 'teacher.burn_in_steps=2.5; .* whole numbers'),
    (dict(decay=0.9, ema=True), r"unknown keys \['decay', 'ema'\].*momentum"),
    (dict(checkpoint='x.pth', burn_in_steps=3),
     "teacher.checkpoint='x.pth' has no effect: .*burn_in_steps=3"),
    ('ema', "teacher='ema'; it must be a dict"),
])
def test_bad_settings_name_the_field(config, message):
    with pytest.raises(ValueError, match=message):
        TeacherSettings.from_config(config)
    with pytest.raises(ValueError, match=message):
        build(teacher=config)


@pytest.mark.parametrize('config', [
    dict(mode='frozen', burn_in_steps=3),
    dict(average_burn_in=True, burn_in_steps=3), {}
])
def test_a_checkpoint_fits_where_the_teacher_is_not_overwritten(config):
    TeacherSettings(checkpoint='x.pth', **config)


@pytest.mark.parametrize('gamma, expected', [
    (1., [1 / 2, 1 / 3, 1 / 4, 1 / 5, 0.2, 0.2]),
    (4., [4 / 5, 4 / 6, 4 / 7, 4 / 8, 4 / 9, 4 / 10]),
    (0., [0.2] * 6),
])
def test_momentum_warms_up(gamma, expected):
    settings = TeacherSettings(momentum=0.2, warm_up_gamma=gamma)
    assert [settings.momentum_at(k) for k in range(1, 7)] == expected
    assert settings.momentum_at(10**6) == 0.2


# Construction --------------------------------------------------------------


def test_teacher_starts_as_a_copy_that_needs_no_gradient():
    model = build()
    assert model.teacher is not model.student
    assert model.teacher.weight.equal(model.student.weight)
    assert model.teacher.weight.data_ptr() != model.student.weight.data_ptr()
    assert not model.teacher.weight.requires_grad
    assert model.student.weight.requires_grad
    assert model.step.dtype == torch.int64 and model.step.item() == 0
    assert set(model.state_dict()) == {
        f'{part}.{name}'
        for part in ('student', 'teacher')
        for name in ('weight', 'mean', 'count')
    } | {'step'}


def test_models_that_change_their_config_are_built_twice():
    segmentor = dict(SEGMENTOR, options=dict(size=3))
    before = copy.deepcopy(segmentor)
    model = build(segmentor)
    assert model.student.size == model.teacher.size == 3
    assert segmentor == before


def test_the_data_preprocessor_is_that_of_the_segmenter():
    model = build()
    inner = model.data_preprocessor.data_preprocessor
    assert isinstance(model.data_preprocessor, MultiBranchDataPreprocessor)
    assert type(inner) is BaseDataPreprocessor
    assert inner is not model.student.data_preprocessor


@pytest.mark.parametrize('data_preprocessor', [
    dict(type='mmdet.DetDataPreprocessor', mean=[7.], std=[1.]),
    dict(
        type='mmsemi.MultiBranchDataPreprocessor',
        data_preprocessor=dict(
            type='mmdet.DetDataPreprocessor', mean=[7.], std=[1.])),
    dict(
        type='mmdet.MultiBranchDataPreprocessor',
        data_preprocessor=dict(
            type='mmdet.DetDataPreprocessor', mean=[7.], std=[1.])),
    ImgDataPreprocessor(mean=[7.], std=[1.]),
])
def test_a_given_data_preprocessor_is_wrapped_once(data_preprocessor):
    segmentor = dict(type='OneWeightSegmenter')
    model = build(segmentor, data_preprocessor=data_preprocessor)
    assert isinstance(model.data_preprocessor, MultiBranchDataPreprocessor)
    assert model.data_preprocessor.data_preprocessor.mean.tolist() == [[[7.]]]


@pytest.mark.parametrize('kwargs, message', [
    (dict(segmentor=dict(type='OneWeightSegmenter')),
     'segmentor has no data_preprocessor and none was given'),
    (dict(segmentor=dict(weight=3)), "neither 'type'"),
    (dict(sup_weight=-1.), 'sup_weight=-1.0; allowed are finite numbers'),
    (dict(sup_weight=math.nan), 'sup_weight=nan'),
    (dict(sup_weight=dict(weight=2.)), 'sup_weight={'),
    (dict(unsup_weight=-1.), 'unsup_weight=-1.0'),
    (dict(unsup_weight=dict(ramps=3)), r"unknown keys \['ramps'\]"),
    (dict(predict_on='both'), "predict_on='both'; allowed are 'teacher' and"),
])
def test_bad_arguments_name_the_field(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_a_method_may_refuse_a_segmenter():

    class Picky(ToyMethod):

        @classmethod
        def check_segmentor(cls, config):
            raise ValueError(f'not {config.type}')

    with pytest.raises(ValueError, match='not OneWeightSegmenter'):
        Picky(SEGMENTOR)


# The moving average --------------------------------------------------------


def test_average_with_warm_up_by_hand():
    model = build(teacher=dict(momentum=0.25))
    # Momenta 1/2, 1/3, 1/4, 1/4, from a teacher of 1.
    assert teacher_weights(model, [3, 5, 7, 8]) == pytest.approx(
        [2, 3, 4, 5], abs=1e-6)
    assert model.step.item() == 4


def test_average_without_warm_up_by_hand():
    model = build(teacher=dict(momentum=0.25, warm_up_gamma=0))
    assert teacher_weights(model, [5, 6, 3, -5]) == [2., 3., 3., 1.]


def test_student_stays_as_it_is():
    model = build()
    teacher_weights(model, [3, 5])
    assert model.student.weight.item() == 5
    assert model.student.mean.item() == 0


def test_momentum_of_one_copies():
    model = build(teacher=dict(momentum=1.))
    students = [0.1, 1e-30, 12345.678]
    for weight in students:
        set_student(model, weight)
        model.update_teacher()
        assert model.teacher.weight.equal(model.student.weight)


def test_float_buffers_are_averaged_and_integer_buffers_copied():
    model = build(teacher=dict(momentum=0.25, warm_up_gamma=0))
    set_student(model, mean=8., count=9)
    model.update_teacher()
    assert model.teacher.mean.item() == 2.
    assert model.teacher.count.item() == 9
    set_student(model, mean=-2., count=4)
    model.update_teacher()
    assert model.teacher.mean.item() == 1.
    assert model.teacher.count.item() == 4


def test_update_needs_no_gradient_graph():
    model = build()
    (model.student.weight * 2).sum().backward()
    model.update_teacher()
    assert model.teacher.weight.grad is None
    assert not model.teacher.weight.requires_grad


def test_buffers_are_averaged_over_processes_first(monkeypatch):
    reduced = []

    def all_reduce_params(params, op):
        """Another process whose float buffers are 4 larger."""
        reduced.extend(params)
        assert op == 'mean'
        for param in params:
            param += 2

    monkeypatch.setattr(teacher_student, 'get_world_size', lambda: 2)
    monkeypatch.setattr(teacher_student, 'all_reduce_params',
                        all_reduce_params)
    model = build(teacher=dict(momentum=0.5, warm_up_gamma=0))
    set_student(model, weight=3., mean=6., count=5)
    model.update_teacher()
    assert len(reduced) == 1
    assert model.teacher.mean.item() == 4.
    assert model.student.mean.item() == 8.
    assert model.teacher.weight.item() == 2.
    assert model.teacher.count.item() == 5


def test_frozen_teacher_keeps_everything_but_counts_steps():
    model = build(teacher=dict(mode='frozen', momentum=0.5))
    set_student(model, mean=3., count=3)
    assert teacher_weights(model, [3, 5]) == [1, 1]
    assert model.teacher.mean.item() == 0 and model.teacher.count.item() == 0
    assert model.step.item() == 2


def test_teacher_becomes_the_student_at_the_end_of_the_burn_in():
    model = build(teacher=dict(burn_in_steps=3, momentum=0.25))
    set_student(model, mean=0.1, count=8)
    # Then the warm-up starts from its first momentum, 1/2.
    assert teacher_weights(model, [3, 5, 0.7, 1.7, 4.2]) == pytest.approx(
        [1, 1, 0.7, 1.2, 2.2], abs=1e-6)
    model = build(teacher=dict(burn_in_steps=1, momentum=0.25))
    set_student(model, 0.7, 0.1, 8)
    model.update_teacher()
    for name, value in model.student.state_dict().items():
        assert model.teacher.state_dict()[name].equal(value)


def test_teacher_may_average_during_the_burn_in():
    model = build(
        teacher=dict(burn_in_steps=2, average_burn_in=True, momentum=0.25))
    assert teacher_weights(model, [3, 5, 7]) == pytest.approx([2, 3, 4],
                                                              abs=1e-6)


def test_distance_by_hand():
    model = build(dict(SEGMENTOR, options=dict(size=2)))
    assert model.teacher_student_distance() == 0
    model.student.weight.data = torch.tensor([3., 4.])
    model.teacher.weight.data = torch.tensor([0., 8.])
    # |(3, -4)| / |(3, 4)|; buffers do not count.
    set_student(model, mean=100.)
    assert model.teacher_student_distance() == 1.
    model.student.weight.data.zero_()
    assert math.isfinite(model.teacher_student_distance())


# Losses --------------------------------------------------------------------


def loss_values(losses):
    return {
        name: [float(v) for v in value] if isinstance(value, list) else
        float(value)
        for name, value in losses.items()
    }


def test_losses_by_hand():
    model = build(sup_weight=0.5, unsup_weight=3.)
    set_student(model, 10.)
    losses = model(*batch(), mode='loss')
    assert loss_values(losses) == {
        'sup_loss_a': 10.,  # 0.5 x 10 x 2
        'sup_loss_b': [5., 5.],
        'sup_acc': 0.25,
        'unsup_loss_a': 90.,  # 3 x 10 x 3
        'unsup_loss_b': [30., 30.],
        'unsup_acc': 0.25,
        'pseudo/sum': 2.,
    }
    assert model.received == (['u0', 'u1'], [1., 1.], ['t0', 't1'])
    total, log = model.parse_losses(losses)
    assert total.item() == 170.
    total.backward()
    # 0.5 x (2 + 1 + 1) + 3 x (3 + 1 + 1)
    assert model.student.weight.grad.item() == 17.
    assert model.teacher.weight.grad is None


def test_factor_takes_the_unsupervised_loss_out():
    model = build()
    model.factor = 0.
    losses = loss_values(model.loss(*batch()))
    assert losses['sup_loss_a'] == 2.
    assert losses['unsup_loss_a'] == 0.
    assert losses['unsup_loss_b'] == [0., 0.]
    assert losses['unsup_acc'] == 0.25


def test_weight_per_step_after_burn_in_and_during_the_ramp():
    model = build(
        teacher=dict(burn_in_steps=2),
        unsup_weight=dict(weight=4., ramp='linear', begin=1, ramp_steps=2))
    model.train()
    weights, students = [], []
    for _ in range(7):
        set_student(model, 1.)
        losses = model.loss(*batch())
        assert float(losses['sup_loss_a']) == 2.
        weights.append(
            float(losses['unsup_loss_a']) / 3 if 'unsup_loss_a' in
            losses else None)
        students.append(len(model.student.calls))
        model.update_teacher()
    assert weights == [None, None, 0., 0., 2., 4., 4.]
    # During the burn-in the student sees its labelled images alone.
    assert students == [1, 2, 4, 6, 8, 10, 12]


def test_weight_stays_the_same_between_optimizer_steps():
    model = build(unsup_weight=dict(ramp='linear', ramp_steps=4))
    trace = []
    for _ in range(3):
        for _ in range(2):  # two iterations make one optimizer step
            trace.append(float(model.loss(*batch())['unsup_loss_a']) / 3)
        model.update_teacher()
    assert trace == [0., 0., 0.25, 0.25, 0.5, 0.5]


def test_a_training_loop_moves_both_models():
    model = build(teacher=dict(momentum=0.5, warm_up_gamma=0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        total, _ = model.parse_losses(model.loss(*batch()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        model.update_teacher()
    # The gradient is (2 + 2) + (3 + 2) = 9 in every step.
    assert model.student.weight.item() == pytest.approx(1 - 1.8, abs=1e-6)
    assert model.teacher.weight.item() == pytest.approx(-0.125, abs=1e-6)


def test_a_tensor_is_no_batch_of_views():
    with pytest.raises(TypeError, match='got Tensor.*mmsemi.MultiBranch'):
        build().loss(torch.zeros(1, 4), ['s'])


@pytest.mark.parametrize('view', ['sup', 'unsup_teacher', 'unsup_student'])
def test_a_missing_view_is_named(view):
    inputs, samples = batch()
    del inputs[view]
    with pytest.raises(ValueError, match=rf"lacks the views \['{view}'\]"):
        build().loss(inputs, samples)


def test_burn_in_needs_labelled_images_alone():
    model = build(teacher=dict(burn_in_steps=1))
    inputs, samples = batch()
    losses = model.loss(dict(sup=inputs['sup']), dict(sup=samples['sup']))
    assert set(losses) == {'sup_loss_a', 'sup_loss_b', 'sup_acc'}
    del inputs['sup']
    with pytest.raises(ValueError, match=r"lacks the views \['sup'\]"):
        model.loss(inputs, samples)


def test_a_forgotten_hook_is_reported_once(messages):
    model = build(teacher=dict(burn_in_steps=1))
    inputs, samples = batch()
    for _ in range(999):
        model.loss(inputs, samples)
    assert messages == []
    for _ in range(2):
        model.loss(inputs, samples)
    assert len(messages) == 1 and 'mmsemi.TeacherUpdateHook' in messages[0]


def test_updates_keep_the_reminder_silent(messages):
    model = build(teacher=dict(burn_in_steps=9))
    for i in range(1200):
        model.loss(*batch())
        if i == 600:
            model.update_teacher()
    assert messages == []


def test_scale_losses_touches_losses_only_and_copies():
    losses = dict(
        loss_cls=torch.tensor(2.),
        loss_mask=[torch.tensor(1.), torch.tensor(3.)],
        d0_loss=(torch.tensor(4.), ),
        acc=torch.tensor(5.))
    before = copy.deepcopy(losses)
    scaled = scale_losses(losses, 0.5, 'unsup_')
    assert scaled == dict(
        unsup_loss_cls=1., unsup_loss_mask=[0.5, 1.5], unsup_d0_loss=[2.],
        unsup_acc=5.)
    assert losses == before
    assert isinstance(losses['d0_loss'], tuple)
    assert scale_losses({}, 2., 'sup_') == {}


# Modes and prediction ------------------------------------------------------


def test_teacher_always_evaluates():
    model = build()
    assert not model.teacher.training
    assert model.train() is model
    assert model.student.training and not model.teacher.training
    assert model.training
    model.eval()
    assert not model.student.training and not model.teacher.training


@pytest.mark.parametrize('mode', ['predict', 'tensor'])
@pytest.mark.parametrize('predict_on', ['teacher', 'student'])
def test_predict_on(predict_on, mode):
    model = build(predict_on=predict_on)
    inputs, samples = torch.zeros(1), ['s']
    assert model(inputs, samples, mode=mode) == (getattr(model, predict_on),
                                                 mode, inputs, samples)


def test_predict_on_may_change():
    model = build()
    assert model.predict_on == 'teacher'
    model.predict_on = 'student'
    assert model.predictor is model.student
    with pytest.raises(ValueError, match='predict_on=None'):
        model.predict_on = None
    assert model.predict_on == 'student'


@pytest.mark.parametrize('settings, predictor', [
    (dict(), 'student'),
    (dict(average_burn_in=True), 'teacher'),
    (dict(mode='frozen'), 'teacher'),
])
def test_who_predicts_during_the_burn_in(settings, predictor):
    model = build(teacher=dict(burn_in_steps=2, **settings))
    for _ in range(2):
        assert model.burning_in
        assert model.predictor is getattr(model, predictor)
        model.update_teacher()
    assert not model.burning_in
    assert model.predictor is model.teacher


# Weights -------------------------------------------------------------------


def plain_state(weight=7., **extra):
    segmenter = OneWeightSegmenter()
    segmenter.weight.data.fill_(weight)
    return dict(segmenter.state_dict(), **extra)


def trained(**kwargs):
    """A model whose teacher, student and step all differ from the start."""
    model = build(teacher=dict(momentum=0.3), **kwargs)
    set_student(model, 0.1, 0.7, 5)
    model.update_teacher()
    set_student(model, 0.2, 0.9, 6)
    return model


def test_init_weights_reaches_both_models():
    model = build()
    model.init_weights()
    assert model.student.weight.item() == model.teacher.weight.item() == 5.


@pytest.mark.parametrize('strict', [True, False])
def test_state_survives_a_file_bit_by_bit(strict):
    model = trained()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = build(teacher=dict(momentum=0.3))
    other.load_state_dict(state, strict=strict)
    assert not other.teacher.weight.equal(other.student.weight)
    for key, value in model.state_dict().items():
        assert other.state_dict()[key].equal(value)
    # The warm-up goes on where it was.
    model.update_teacher()
    other.update_teacher()
    assert model.teacher.weight.equal(other.teacher.weight)
    assert model.step.item() == other.step.item() == 2


def test_a_plain_checkpoint_fills_both_and_says_so(messages):
    model = trained()
    result = model.load_state_dict(plain_state(), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    for part in (model.student, model.teacher):
        assert part.weight.item() == 7.
        assert part.count.item() == 0
    assert model.step.item() == 1
    assert messages == [
        'Loaded 2 of 2 weights of a plain segmenter into student and teacher.'
    ]


def test_a_plain_checkpoint_leaves_what_a_stage_counts():
    model = build()
    model.calibrator = torch.nn.BatchNorm1d(2)
    model.calibrator.running_mean.fill_(3.)
    model.step.fill_(5)
    model.load_state_dict(plain_state(), strict=True)
    assert model.calibrator.running_mean.tolist() == [3., 3.]
    assert int(model.step) == 5


def test_a_plain_checkpoint_file_through_mmengine(messages, tmp_path):
    path = str(tmp_path / 'plain.pth')
    torch.save(dict(state_dict=plain_state(), meta=dict()), path)
    model = build()
    load_checkpoint(model, path, map_location='cpu', strict=True)
    assert model.student.weight.item() == model.teacher.weight.item() == 7.
    assert len(messages) == 1


def test_loading_leaves_the_given_state_alone(messages):
    state = plain_state()
    keys = list(state)
    build().load_state_dict(state)
    load_state_dict(build(), state)
    assert list(state) == keys


@pytest.mark.parametrize('load', [
    lambda model, state: model.load_state_dict(state, strict=True),
    lambda model, state: load_state_dict(model, state, strict=True),
])
def test_a_plain_checkpoint_inside_a_wrapper(messages, load):
    model = build()
    wrapper = nn.ModuleDict(dict(inner=model, other=nn.Linear(1, 1)))
    state = {f'inner.{key}': value for key, value in plain_state().items()}
    state.update(wrapper['other'].state_dict(prefix='other.'))
    load(wrapper, state)
    assert model.student.weight.item() == model.teacher.weight.item() == 7.


def test_an_unrelated_key_that_looks_like_a_teacher(messages):
    model = build()
    state = plain_state(teacher_x=torch.zeros(1), my_student=torch.zeros(1))
    result = model.load_state_dict(state, strict=False)
    assert model.student.weight.item() == model.teacher.weight.item() == 7.
    assert result.missing_keys == []
    assert 'student.teacher_x' in result.unexpected_keys


def test_weights_of_another_shape_do_not_count_as_loaded(messages):
    model = build(dict(SEGMENTOR, options=dict(size=3)))
    load_state_dict(model, plain_state())
    assert model.student.weight.tolist() == [1., 1., 1.]
    assert messages == [
        'Loaded 1 of 2 weights of a plain segmenter into student and teacher.'
    ]


@pytest.mark.parametrize('state', [
    {},
    {'backbone.weight': torch.zeros(1)},
    # Names alone are no match, nor are the counters of batch norm.
    {'weight': torch.zeros(4), 'count': torch.tensor(3)},
    {'student.backbone.weight': torch.zeros(1),
     'teacher.backbone.weight': torch.zeros(1), 'step': torch.tensor(4)},
])
def test_a_checkpoint_that_matches_nothing_is_an_error(state):
    model = build()
    for load in (lambda: model.load_state_dict(state, strict=False),
                 lambda: load_state_dict(model, state, strict=False)):
        with pytest.raises(RuntimeError) as error:
            load()
        message = str(error.value)
        assert 'matches nothing' in message
        assert f'none of its {len(state)} keys' in message
        assert "'weight'" in message
    assert model.step.item() == 0


def test_a_semi_checkpoint_keeps_both_models_apart(messages):
    model = build()
    state = {
        f'{part}.{key}': value
        for part, weight in (('student', 3.), ('teacher', 4.))
        for key, value in plain_state(weight).items()
    }
    result = model.load_state_dict(state, strict=False)
    # As mmdet's SoftTeacher writes it, without the count of steps.
    assert result.missing_keys == ['step']
    assert model.student.weight.item() == 3.
    assert model.teacher.weight.item() == 4.
    assert messages == []


def saved(tmp_path, state, name='weights.pth'):
    path = str(tmp_path / name)
    torch.save(dict(state_dict=state), path)
    return path


@pytest.mark.parametrize('settings', [dict(mode='frozen'), dict()])
def test_teacher_checkpoint_of_a_plain_model(tmp_path, settings):
    path = saved(tmp_path, plain_state(9.))
    model = build(teacher=dict(checkpoint=path, **settings))
    model.init_weights()
    assert model.teacher.weight.item() == 9.
    assert model.student.weight.item() == 5.
    assert not model.teacher.weight.requires_grad


def test_teacher_checkpoint_of_a_semi_model_takes_its_teacher(tmp_path):
    other = trained()
    path = saved(tmp_path, other.state_dict())
    model = build(teacher=dict(checkpoint=path))
    model.init_weights()
    assert model.teacher.weight.equal(other.teacher.weight)
    assert not model.teacher.weight.equal(other.student.weight)
    assert model.step.item() == 0


def test_teacher_checkpoint_is_not_overwritten_by_load_from(
        tmp_path, messages):
    path = saved(tmp_path, plain_state(9.))
    model = build(teacher=dict(checkpoint=path))
    model.init_weights()
    model.load_state_dict(plain_state(7.), strict=True)
    assert model.student.weight.item() == 7.
    assert model.teacher.weight.item() == 9.
    assert messages == [
        'Loaded 2 of 2 weights of a plain segmenter into the student; the '
        'teacher keeps teacher.checkpoint.'
    ]
    # Without a training nothing filled the teacher, so both are filled.
    model = build(teacher=dict(checkpoint=path))
    model.load_state_dict(plain_state(7.), strict=True)
    assert model.teacher.weight.item() == 7.


def test_resume_overrides_the_teacher_checkpoint(tmp_path):
    path = saved(tmp_path, plain_state(9.))
    other = trained()
    model = build(teacher=dict(checkpoint=path))
    model.init_weights()
    model.load_state_dict(other.state_dict())
    assert model.teacher.weight.equal(other.teacher.weight)


@pytest.mark.parametrize('state', [{'backbone.conv': torch.zeros(1)},
                                   {'weight': torch.zeros(4)},
                                   {'student.weight': torch.ones(1)}])
def test_teacher_checkpoint_that_matches_nothing(tmp_path, state):
    path = saved(tmp_path, state)
    model = build(teacher=dict(checkpoint=path))
    with pytest.raises(RuntimeError, match='teacher.checkpoint=.*no weight'):
        model.init_weights()


def test_teacher_checkpoint_that_does_not_exist(tmp_path):
    path = str(tmp_path / 'gone.pth')
    model = build(teacher=dict(checkpoint=path))
    with pytest.raises(FileNotFoundError, match='teacher.checkpoint=.*gone'):
        model.init_weights()
