# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope

from mmsemi.methods import UDA
from mmsemi.methods.uda import divergence_loss
from mmsemi.models.losses import LossNormalizer
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import DenseTargets


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


def wave(shape, phase, amp=3.):
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (amp * torch.sin(1.1 * index + phase)).reshape(shape)


def reference(teacher, student, sharpen):
    prob = teacher.softmax(1)
    weight = (prob.amax(1) > .7).double()
    return divergence_loss(student, prob, weight, weight >= 0, .4,
                           sharpen).item()


def test_reference_of_vectors():
    found = reference(wave((3, 4), .1), wave((3, 4), .5), 'student')
    assert found == pytest.approx(.19235690, abs=1e-8)


@pytest.mark.parametrize('sharpen, expected', [('student', 1.51449753),
                                               ('target', .86794369)])
def test_dense_reference(sharpen, expected):
    shape = (2, 4, 3, 3)
    found = reference(wave(shape, .1), wave(shape, .9), sharpen)
    assert found == pytest.approx(expected, abs=1e-8)


def test_sharpening_equals_a_temperature_on_logits():
    teacher, student = wave((2, 4, 3, 3), .1), wave((2, 4, 3, 3), .9)
    ones = torch.ones(2, 3, 3, dtype=torch.float64)
    found = divergence_loss(student, teacher.softmax(1), ones, ones > 0, .25)
    expected = F.kl_div(
        student.log_softmax(1), (teacher / .25).softmax(1),
        reduction='none').sum(1).mean()
    assert torch.allclose(found, expected)


@pytest.mark.parametrize('sharpen', ['target', 'student'])
def test_certain_teacher_is_finite(sharpen):
    prob = torch.tensor([1., 0.]).reshape(1, 2, 1, 1)
    student = torch.zeros(1, 2, 1, 1, requires_grad=True)
    ones = torch.ones(1, 1, 1)
    loss = divergence_loss(student, prob, ones, ones > 0, .4, sharpen)
    loss.backward()
    assert loss.item() == pytest.approx(.6931472)
    assert student.grad.isfinite().all()


def test_equal_predictions_have_no_divergence():
    logits = wave((1, 4, 3, 3), .1).requires_grad_()
    ones = torch.ones(1, 3, 3, dtype=torch.float64)
    prob = logits.detach().softmax(1)
    loss = divergence_loss(logits, prob, ones, ones > 0, 1.)
    loss.backward()
    assert loss.item() == pytest.approx(0., abs=1e-12)
    assert logits.grad.abs().max() < 1e-12


def test_nothing_kept():
    logits = wave((1, 4, 3, 3), .1).requires_grad_()
    zeros = torch.zeros(1, 3, 3)
    loss = divergence_loss(logits, logits.detach().softmax(1), zeros,
                           zeros >= 0)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


@pytest.fixture
def make(dense_segmentor_config):

    def build(**kwargs):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(
                type='mmsemi.UDA',
                segmentor=dense_segmentor_config(),
                **kwargs))
        model.init_weights()
        model.student.decode_head.conv_seg.weight.data *= 100
        model.copy_student_to_teacher()
        return model

    return build


def test_defaults(make):
    model = make()
    assert type(model) is UDA and model.temperature == .4
    assert model.sharpen == 'target'
    assert model.normalizer is LossNormalizer.KEPT
    assert model.pseudo_label_pipeline.stages[0].conf_thr == .8


@pytest.mark.parametrize('sharpen', ['target', 'student'])
def test_the_model_takes_the_function(make, sharpen):
    model = make(sharpen=sharpen, temperature=.5)
    valid = torch.ones(2, 3, 3, dtype=torch.bool)
    targets = DenseTargets.from_logits(wave((2, 4, 3, 3), .1), valid, True)
    logits = wave((2, 4, 3, 3), .9)
    expected = divergence_loss(logits, targets.prob, targets.weight, valid, .5,
                               sharpen)
    assert torch.equal(
        model.unlabeled_loss(logits, targets)['loss'], expected)


@pytest.mark.parametrize('mix', [None, dict(type='mmsemi.BoxMix')])
def test_training_step(make, dense_batch_factory, mix):
    stage = dict(type='mmsemi.KeepConfidentPixels', conf_thr=.3)
    model = make(mix=mix, pseudo_label_pipeline=[stage])
    losses = model(*dense_batch_factory(), mode='loss')
    assert losses['unsup_loss'].item() > 0
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.student.parameters())


@pytest.mark.parametrize('kwargs, message', [
    (dict(temperature=0), 'temperature=0'),
    (dict(temperature=-1), 'temperature=-1'),
    (dict(temperature=float('inf')), 'temperature=inf'),
    (dict(sharpen='both'), "sharpen='both'.*'target', 'student'"),
])
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)
