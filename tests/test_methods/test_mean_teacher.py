# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmengine.registry import init_default_scope

from mmsemi.methods import MeanTeacher
from mmsemi.methods.mean_teacher import consistency_loss
from mmsemi.models.dense_forward import dense_logits
from mmsemi.registry import MODELS


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


def wave(shape, phase, amp=3.):
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (amp * torch.sin(1.1 * index + phase)).reshape(shape)


@pytest.mark.parametrize('kwargs, factor, expected', [
    ({}, 1, .33151933),
    (dict(conf_thr=.7, conf_per_pixel=False), 1, .22101289),
    (dict(conf_thr=.7), 1, .23020076),
    (dict(average_classes=True), 100, 8.28798335),
])
def test_reference_values(kwargs, factor, expected):
    shape = (2, 4, 3, 3)
    loss = consistency_loss(
        wave(shape, .9), wave(shape, .1).softmax(1), **kwargs)
    assert (factor * loss).item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize('per_pixel', [True, False])
def test_padding_does_not_count(per_pixel):
    student, prob = wave((2, 4, 3, 3), .9), wave((2, 4, 3, 3), .1).softmax(1)
    valid = torch.ones(2, 3, 3, dtype=torch.bool)
    valid[..., 2] = False
    kwargs = dict(conf_thr=.7, conf_per_pixel=per_pixel)
    assert torch.allclose(
        consistency_loss(student, prob, valid, **kwargs),
        consistency_loss(student[..., :2], prob[..., :2], **kwargs))
    assert consistency_loss(student, prob, valid & ~valid, **kwargs) == 0


def test_equal_predictions_agree():
    logits = wave((1, 4, 3, 3), .1)
    assert consistency_loss(logits, logits.softmax(1)) == 0


@pytest.fixture
def make(dense_segmentor_config):

    def build(**kwargs):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(
                type='mmsemi.MeanTeacher',
                segmentor=dense_segmentor_config(),
                **kwargs))
        model.init_weights()
        model.student.decode_head.conv_seg.weight.data *= 100
        model.copy_student_to_teacher()
        return model

    return build


def parts_of(model, inputs, samples):
    """Student's logits, teacher's probabilities and valid pixels by view."""
    student, teacher = (copy.deepcopy(m) for m in (model.student,
                                                   model.teacher))
    student.train()
    found = {}
    with torch.no_grad():
        for name, weak, strong in (('sup', 'sup', 'sup'),
                                   ('unsup', 'unsup_teacher',
                                    'unsup_student')):
            valid = torch.zeros(
                inputs[weak].shape[:1] + inputs[weak].shape[2:],
                dtype=torch.bool)
            for image, sample in zip(valid, samples[weak]):
                image[:sample.img_shape[0]] = True
            found[name] = (dense_logits(student, inputs[strong]),
                           dense_logits(teacher, inputs[weak]).softmax(1),
                           valid)
    return found


def test_loss_by_hand(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(unsup_weight=3.)
    expected = consistency_loss(*parts_of(model, inputs, samples)['unsup'])
    losses = model(inputs, samples, mode='loss')
    assert torch.allclose(
        losses['unsup_loss_consistency'], 3 * expected, rtol=1e-4)
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.student.parameters())


def test_labelled_images_count_by_their_number(make, dense_batch_factory):
    inputs, samples = dense_batch_factory(
        dict(
            sup=(2, 16, 16),
            unsup_teacher=(3, 16, 24),
            unsup_student=(3, 16, 24)))
    model = make(use_labeled=True, average_classes=True, unsup_weight=100)
    supervised = copy.deepcopy(model.student).loss(inputs['sup'],
                                                   samples['sup'])
    parts = parts_of(model, inputs, samples)
    losses = model(inputs, samples, mode='loss')
    expected = 100 * sum(
        consistency_loss(*parts[name], average_classes=True) * share
        for name, share in (('sup', .4), ('unsup', .6)))
    assert torch.allclose(
        losses['unsup_loss_consistency'], expected, rtol=1e-4)
    assert torch.allclose(losses['sup_decode.loss_ce'],
                          supervised['decode.loss_ce'])
    assert 'pseudo/mean_confidence' in losses


def test_cutmix_with_labelled_images(make, dense_batch_factory):
    model = make(
        mix=dict(type='mmsemi.BoxMix', num_boxes=1, area_range=(.5, .5)),
        use_labeled=True,
        conf_thr=.3,
        conf_per_pixel=False)
    losses = model(*dense_batch_factory(), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert losses['unsup_loss_consistency'].item() > 0


def test_student_without_teacher(make, dense_batch_factory):
    model = make(teacher=dict(mode='student'))
    losses = model(*dense_batch_factory(), mode='loss')
    assert losses['unsup_loss_consistency'].item() > 0


@pytest.mark.parametrize('kwargs, message', [
    (dict(conf_thr=1.5), 'conf_thr=1.5'),
    (dict(pseudo_label_pipeline=[dict(type='mmsemi.KeepConfidentPixels')]),
     'takes no pseudo_label_pipeline'),
])
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_an_empty_pipeline_is_fine(make):
    assert isinstance(make(pseudo_label_pipeline=[]), MeanTeacher)
