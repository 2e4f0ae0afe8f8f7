# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from torch import nn

from mmsemi.methods.dst import (DST, GradientReversal, grl_coefficient,
                                self_training_loss, worst_case_loss)
from mmsemi.models.dense_forward import dense_logits
from mmsemi.registry import MODELS


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


@pytest.fixture
def make(dense_segmentor_config):

    def build(head=None, **kwargs):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(
                type='mmsemi.DST',
                segmentor=dense_segmentor_config(**(head or {})),
                **kwargs))
        model.init_weights()
        # Classifiers start with nearly equal probabilities.
        model.student.decode_head.conv_seg.weight.data *= 100
        return model

    return build


def wave(shape, phase, amp=3.):
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (amp * torch.sin(1.1 * index + phase)).reshape(shape)


def total(losses):
    return sum(
        value if torch.is_tensor(value) else sum(value)
        for key, value in losses.items() if 'loss' in key)


# Functions ----------------------------------------------------------------


@pytest.fixture
def rows():
    """dict: yl, yl_adv, yu, yu_adv of the reference by name."""
    return dict(yl=.1, yl_adv=.5, yu=.9, yu_adv=1.3)


def of(rows, shape, *names):
    return [wave(shape, rows[name]) for name in names]


NAMES = ('yl_adv', 'yl', 'yu_adv', 'yu')


@pytest.mark.parametrize('shape, eta, expected', [
    ((3, 4), 1., 1.90151238),
    ((3, 4), 2., 2.36947023),
    ((3, 4), 0., 1.43355454),
    ((1, 4, 3, 3), 0., .96142713),
    ((1, 4, 3, 3), 1., .96142713 + .42991880),
    ((1, 4, 3, 3), 2., 1.82126474),
])
def test_worst_case_reference(rows, shape, eta, expected):
    loss = worst_case_loss(*of(rows, shape, *NAMES), eta)
    assert loss.item() == pytest.approx(expected, abs=2e-8)


def test_worst_case_against_ground_truth(rows):
    label = torch.arange(9).remainder(4).reshape(1, 3, 3)
    label[0, 0, 0] = 255
    logits = of(rows, (1, 4, 3, 3), *NAMES)
    loss = worst_case_loss(*logits, 1., label_l=label)
    assert loss.item() == pytest.approx(.96142713 + 3.06507204, abs=2e-8)
    valid = label != 255
    assert torch.equal(
        loss, worst_case_loss(*logits, 1., valid, None, label))


def test_worst_case_leaves_out_pixels(rows):
    logits = of(rows, (1, 4, 3, 3), *NAMES)
    valid = torch.zeros(1, 3, 3, dtype=torch.bool)
    valid[..., 1] = True
    assert torch.allclose(
        worst_case_loss(*logits, 2., valid, valid),
        worst_case_loss(*(part[..., 1:2] for part in logits), 2.))
    assert worst_case_loss(*logits, 2., ~valid & valid, ~valid & valid) == 0


def test_worst_case_gradients():
    """They reach the worst-case head alone; certainty stays finite."""
    worst_l, main_l, worst_u, main_u = [
        torch.tensor([[200., 0.]], dtype=torch.float64, requires_grad=True)
        for _ in range(4)
    ]
    loss = worst_case_loss(worst_l, main_l, worst_u, main_u, 2.)
    assert loss.item() == pytest.approx(-math.log(1e-6))
    loss.backward()
    assert main_l.grad is None and main_u.grad is None
    assert worst_u.grad.isfinite().all()


def test_self_training_reference(rows):
    teacher, student = of(rows, (3, 4), 'yl', 'yl_adv')
    confidence, label = teacher.softmax(1).max(1)
    loss = self_training_loss(student, label, confidence)
    assert loss.item() == pytest.approx(.35635460, abs=2e-8)
    kept = (confidence > .7).double()
    assert kept.sum() == 2
    assert (loss * 3 / 2).item() == pytest.approx(.53453189, abs=2e-8)
    valid = torch.tensor([True, True, False])
    assert torch.allclose(
        self_training_loss(student, label, confidence, valid),
        self_training_loss(student[:2], label[:2], confidence[:2]))
    # Only what is more confident is kept.
    assert self_training_loss(student, label, confidence, threshold=float(
        confidence.max())) == 0


@pytest.mark.parametrize('step, expected', [(0, 0.), (500, .02449187),
                                            (1000, .04621172),
                                            (2000, .07615942),
                                            (5000, .09866143)])
def test_coefficient_reference(step, expected):
    assert grl_coefficient(step) == pytest.approx(expected, abs=1e-8)
    assert grl_coefficient(step, .3, 500.) == pytest.approx(
        .6 / (1 + math.exp(-step / 500)) - .3)


def test_gradient_reversal():
    head = nn.Linear(3, 2).double()
    plain = wave((4, 3), .3).requires_grad_()
    head(plain).square().sum().backward()
    expected = head.weight.grad.clone()
    head.zero_grad()
    values = wave((4, 3), .3).requires_grad_()
    out = GradientReversal.apply(values, .07)
    assert torch.equal(out, values)
    head(out).square().sum().backward()
    assert torch.equal(values.grad, -.07 * plain.grad)
    assert torch.equal(head.weight.grad, expected)


# The model ----------------------------------------------------------------


def test_losses(make, dense_batch_factory):
    """Against separate steps, with joint batch statistics."""
    model = make(head_dropout=0., unsup_weight=.5, worst_weight=.3)
    inputs, samples = dense_batch_factory()
    plain = copy.deepcopy(model)
    losses = model.loss(inputs, samples)
    assert set(losses) == {
        'sup_decode.loss_ce', 'sup_decode.acc_seg', 'sup_aux.loss_ce',
        'sup_aux.acc_seg', 'unsup_loss_worst', 'unsup_loss_st',
        'pseudo/worst_disagreement_labeled',
        'pseudo/worst_disagreement_unlabeled', 'pseudo/kept_share',
        'pseudo/mean_confidence'
    }

    student, head = plain.student, plain.student.decode_head
    seen = []
    head.conv_seg.register_forward_pre_hook(
        lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        features = student.extract_feat(
            torch.cat([inputs['sup'], inputs['unsup_teacher']]))
        main = head(features)
        both = F.interpolate(main, (16, 24), mode='bilinear')
        own = head.loss_by_feat(main[:2], samples['sup'])
        z = seen.pop()
        confidence, label = both[2:].softmax(1).max(1)
        valid = torch.ones(2, 16, 24, dtype=torch.bool)
        valid[1, 12:] = False
        small = F.interpolate(valid[:, None].float(), z.shape[2:])[:, 0] > 0
        worst = plain.worst_head(z)
        expected_worst = worst_case_loss(worst[:2], main[:2], worst[2:],
                                         main[2:], 2., small, small)
        dense_logits(student, inputs['unsup_student'])
        logits = F.interpolate(
            plain.pseudo_head(seen.pop()), (16, 24), mode='bilinear')
        kept = (confidence >= .7) & valid
        expected_st = (F.cross_entropy(logits, label, reduction='none') *
                       kept).sum() / valid.sum()
    assert z.shape[1:] == (8, 2, 3)
    assert kept.any() and not kept[valid].all()
    assert torch.allclose(losses['sup_decode.loss_ce'], own['loss_ce'])
    assert torch.allclose(losses['unsup_loss_worst'], .3 * expected_worst)
    assert torch.allclose(losses['unsup_loss_st'], .5 * expected_st)
    differ = worst.argmax(1) != main.argmax(1)
    for name, part in (('labeled', differ[:2]), ('unlabeled', differ[2:])):
        assert torch.allclose(losses[f'pseudo/worst_disagreement_{name}'],
                              part[small].float().mean())


def gradients(loss, module):
    module.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name: None if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
    }


def test_gradients(make, dense_batch_factory):
    """Which part learns from what, and the reversed sign."""
    model = make(head_dropout=0.)
    inputs, samples = dense_batch_factory()

    def of_loss(name, step):
        model.step.fill_(step)
        return gradients(model.loss(inputs, samples)[name], model)

    st = of_loss('unsup_loss_st', 0)
    assert st['student.decode_head.conv_seg.weight'] is None
    assert st['worst_head.0.weight'] is None
    assert st['pseudo_head.0.weight'].abs().sum() > 0
    assert st['student.backbone.stem.0.weight'].abs().sum() > 0

    # Nothing is reversed at the start, and the more the later.
    backbone = 'student.backbone.stem.0.weight'
    found = {step: of_loss('unsup_loss_worst', step)
             for step in (0, 500, 2000)}
    for step, grad in found.items():
        assert grad['student.decode_head.conv_seg.weight'] is None
        assert grad['pseudo_head.0.weight'] is None
        assert grad['worst_head.0.weight'].abs().sum() > 0
        assert torch.allclose(grad['worst_head.0.weight'],
                              found[0]['worst_head.0.weight'])
        assert grad['student.auxiliary_head.conv_seg.weight'] is None
    assert not found[0][backbone].any()
    assert torch.allclose(
        found[500][backbone] * (.07615942 / .02449187),
        found[2000][backbone],
        rtol=1e-3,
        atol=1e-9)


def test_worst_head_opposes_the_backbone(make, dense_batch_factory):
    model = make(head_dropout=0., reversal=1., reversal_warm_up=1e-9)
    model.step.fill_(1)
    inputs, samples = dense_batch_factory()
    backbone = 'student.backbone.stem.0.weight'
    reversed_ = gradients(
        model.loss(inputs, samples)['unsup_loss_worst'], model)
    model.reversal = -1.
    plain = gradients(model.loss(inputs, samples)['unsup_loss_worst'], model)
    assert torch.allclose(reversed_[backbone], -plain[backbone], atol=1e-9)
    assert torch.allclose(reversed_['worst_head.3.weight'],
                          plain['worst_head.3.weight'], atol=1e-7)


def test_ground_truth_as_target(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(head_dropout=0.)
    main = model.loss(inputs, samples)['unsup_loss_worst']
    model = make(head_dropout=0., worst_labeled_target='gt')
    truth = model.loss(inputs, samples)['unsup_loss_worst']
    assert not torch.allclose(main, truth)
    # Labels are looked at, not predictions.
    for sample in samples['sup']:
        sample.gt_sem_seg.data = torch.where(
            sample.gt_sem_seg.data == 255, 255,
            (sample.gt_sem_seg.data + 1) % 4)
    model = make(head_dropout=0., worst_labeled_target='gt')
    assert not torch.allclose(
        model.loss(inputs, samples)['unsup_loss_worst'], truth)
    model = make(head_dropout=0.)
    assert torch.equal(model.loss(inputs, samples)['unsup_loss_worst'], main)


def test_passes(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    for settings, expected in ((dict(), [4, 2]),
                               (dict(label_in_train_mode=False), [4, 2, 2]),
                               (dict(strong_sup_weight=.1), [4, 2, 2])):
        model, calls = make(**settings), []
        model.student.backbone.register_forward_hook(
            lambda _, args, out: calls.append(len(args[0])))
        if settings.get('strong_sup_weight'):
            inputs['sup_strong'] = inputs['sup']
            samples['sup_strong'] = samples['sup']
        losses = model.loss(inputs, samples)
        assert sorted(calls) == sorted(expected)
        total(losses).backward()
        assert all(p.grad is not None for p in model.parameters())
    assert 'sup_strong_decode.loss_ce' in losses
    assert model.views[-1] == 'sup_strong'


def test_strong_labeled_view_is_weighted(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(strong_sup_weight=.1, sup_weight=3.)
    with pytest.raises(ValueError, match="lacks the views.*'sup_strong'"):
        model.loss(inputs, samples)
    inputs['sup_strong'] = inputs['sup'] + 1
    samples['sup_strong'] = samples['sup']
    own = copy.deepcopy(model.student).loss(inputs['sup_strong'],
                                            samples['sup_strong'])
    losses = model.loss(inputs, samples)
    assert torch.allclose(losses['sup_strong_decode.loss_ce'],
                          own['decode.loss_ce'] * .3)


def test_sizes_may_differ(make, dense_batch_factory):
    inputs, samples = dense_batch_factory(
        dict(
            sup=(2, 8, 16),
            unsup_teacher=(3, 16, 24),
            unsup_student=(3, 16, 24)))
    losses = make().loss(inputs, samples)
    total(losses).backward()
    assert total(losses).isfinite()


def test_works_with_mix_and_dropout(make, dense_batch_factory):
    """The features are those before the classifier's dropout."""
    inputs, samples = dense_batch_factory()
    model = make(
        dict(dropout_ratio=.5), mix=dict(type='mmsemi.CutMix', prob=1.))
    seen = []
    model.worst_head.register_forward_pre_hook(
        lambda _, args: seen.append(args[0]))
    model.pseudo_head.register_forward_pre_hook(
        lambda _, args: seen.append(args[0]))
    total(model.loss(inputs, samples)).backward()
    # One call per part, and the strong view.
    assert [len(part) for part in seen] == [2, 2, 2]
    model.eval()
    with torch.no_grad():
        model.loss(inputs, samples)
    assert all((part == 0).all((2, 3)).float().mean() < .4 for part in seen)


def test_burn_in_touches_every_weight(make, dense_batch_factory):
    inputs, samples = dense_batch_factory()
    model = make(teacher=dict(mode='student', burn_in_steps=2))
    losses = model.loss(inputs, samples)
    assert losses['unsup_loss_idle'] == 0
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.update_teacher()
    model.update_teacher()
    assert 'unsup_loss_worst' in model.loss(inputs, samples)


def test_count_survives_a_checkpoint(make):
    model = make()
    for _ in range(3):
        model.update_teacher()
    again = make()
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    assert int(again.step) == 3
    assert {key.split('.')[0] for key in model.state_dict()} == {
        'student', 'step', 'pseudo_head', 'worst_head'
    }


def test_plain_checkpoint(make, dense_segmentor_config):
    model = make()
    heads = copy.deepcopy(model.pseudo_head.state_dict())
    plain = MODELS.build(dense_segmentor_config())
    model.load_state_dict(plain.state_dict(), strict=True)
    for key, value in plain.state_dict().items():
        assert torch.equal(model.student.state_dict()[key], value)
    for key, value in model.pseudo_head.state_dict().items():
        assert torch.equal(heads[key], value)


def test_main_head_predicts(make, dense_batch_factory):
    model = make().eval()
    assert model.predictors == ('student', )
    inputs, samples = dense_batch_factory()
    images = inputs['unsup_teacher']
    found = model(images, samples['unsup_teacher'], mode='predict')
    expected = dense_logits(model.student, images).argmax(1)
    assert torch.equal(found[0].pred_sem_seg.data[0], expected[0])


def test_heads(make):
    model = make(head_channels=6, head_dropout=.2)
    for head in (model.pseudo_head, model.worst_head):
        kinds = [type(layer).__name__ for layer in head]
        assert kinds == ['Conv2d', 'ReLU', 'Dropout', 'Conv2d']
        assert head[0].weight.shape == (6, 8, 1, 1)
        assert head[2].p == .2
        assert head[3].weight.shape == (4, 6, 1, 1)


@pytest.mark.parametrize('kwargs, message', [
    (dict(worst_weight=-1.), 'worst_weight=-1'),
    (dict(eta_prime=float('inf')), 'eta_prime=inf'),
    (dict(strong_sup_weight=-.1), 'strong_sup_weight=-0.1'),
    (dict(reversal=-.1), 'reversal=-0.1'),
    (dict(reversal_warm_up=0.), 'reversal_warm_up=0.0'),
    (dict(head_dropout=1.), 'head_dropout=1.0'),
    (dict(head_channels=0), 'head_channels=0'),
    (dict(worst_labeled_target='pseudo'), "worst_labeled_target='pseudo'"),
    (dict(teacher=dict(mode='ema')), "teacher.mode='student'"),
    (dict(teacher=dict(mode='ema'), label_in_train_mode=False),
     "DST.teacher.mode='ema'"),
])
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_head_without_classifier_is_refused(make, dense_batch_factory):
    model = make()
    head = model.student.decode_head
    head.cls_seg = lambda feat: torch.zeros(
        len(feat), 4, *feat.shape[2:], requires_grad=True)
    with pytest.raises(ValueError, match='does not classify by cls_seg'):
        model.loss(*dense_batch_factory())


def test_is_registered():
    assert MODELS.get('mmsemi.DST') is DST
