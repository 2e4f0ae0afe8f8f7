# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import random

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

from mmsemi.datasets.transforms.mix import MixPlan
from mmsemi.methods import UniMatch, UniMatchV2, unimatch
from mmsemi.methods.unimatch import complementary_dropout, thresholded_loss
from mmsemi.models.dense_forward import decode, dense_logits, resize_logits
from mmsemi.registry import MODELS
from mmsemi.structures.dense_pseudo_label import DenseTargets

VIEWS = ('sup', 'unsup_teacher', 'unsup_student', 'unsup_student_2')
SIZES = dict.fromkeys(VIEWS, (2, 16, 24))
KEEP = [dict(type='mmsemi.KeepConfidentPixels', conf_thr=.3)]


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


@pytest.fixture
def make(dense_segmentor_config):

    def build(version='UniMatch', **kwargs):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(
                type=f'mmsemi.{version}',
                segmentor=dense_segmentor_config(),
                **kwargs))
        model.init_weights()
        model.student.decode_head.conv_seg.weight.data *= 100
        model.copy_student_to_teacher()
        return model

    return build


def seed_all(seed=0):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


# The loss -----------------------------------------------------------------


def wave(shape, phase, amp=3.):
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (amp * torch.sin(1.1 * index + phase)).reshape(shape)


def reference():
    valid = torch.ones(2, 3, 3, dtype=torch.bool)
    valid[0, 2] = False
    valid[1, :, 0] = False
    weak, strong = wave((2, 4, 3, 3), .1, 4.), wave((2, 4, 3, 3), .9)
    return DenseTargets.from_logits(weak, valid), strong


@pytest.mark.parametrize('threshold, expected, kept', [
    (.95, .07939894, 2),
    (.6, .72705917, 10),
    (0., .75687226, 12),
])
def test_reference_values(threshold, expected, kept):
    targets, strong = reference()
    loss = thresholded_loss(strong, targets.label, targets.confidence,
                            targets.valid, threshold)
    assert loss.item() == pytest.approx(expected, abs=1e-8)
    assert targets.valid.sum() == 12
    assert ((targets.confidence >= threshold) & targets.valid).sum() == kept


def test_reference_with_cutmix():
    targets, strong = reference()
    take = torch.zeros(2, 3, 3, dtype=torch.bool)
    take[:, :2, 1:] = True
    mixed = MixPlan(take, torch.tensor([1, 0])).mix_targets(targets)
    loss = thresholded_loss(strong, mixed.label, mixed.confidence,
                            mixed.valid, .6)
    assert loss.item() == pytest.approx(1.94783009, abs=1e-8)
    assert ((mixed.confidence >= .6) & mixed.valid).sum() == 10


@pytest.mark.parametrize('version, values, expected', [
    ('UniMatch', (.4, .6, .8), .825),
    ('UniMatchV2', (.4, .6), .75),
])
def test_combination(make, dense_batch_factory, monkeypatch, version, values,
                     expected):
    model, values = make(version), list(values)
    monkeypatch.setattr(unimatch, 'loss_from_features',
                        lambda *_: dict(loss=torch.ones(())))
    monkeypatch.setattr(model.student, 'loss',
                        lambda *_: dict(loss=torch.ones(())))
    monkeypatch.setattr(model, 'unlabeled_loss',
                        lambda *_: dict(loss=torch.tensor(values.pop(0))))
    losses = model(*dense_batch_factory(SIZES), mode='loss')
    assert not values
    total, _ = model.parse_losses(losses)
    assert total.item() == pytest.approx(expected)


# Version 1 ----------------------------------------------------------------


def test_defaults(make):
    model = make()
    assert type(model) is UniMatch and model.teacher is None
    assert model.strong_weights == (.25, .25)
    assert (model.feature_weight, model.feature_drop) == (.5, .5)
    assert (model.sup_weight, model.unsup_weight(0)) == (.5, .5)
    assert model.views == VIEWS


def frozen(model):
    """Statistics of batch norm neither used nor learned."""
    return model.eval()


def test_shared_features_equal_separate_passes(make, dense_batch_factory,
                                               monkeypatch):
    inputs, samples = dense_batch_factory(SIZES)
    model = frozen(make(pseudo_label_pipeline=KEEP))
    found = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(
                model, '_shared_features', lambda a, b:
                (model.student.extract_feat(a),
                 model.student.extract_feat(b)))
        seed_all()
        found.append(model(inputs, samples, mode='loss'))
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert torch.allclose(value, found[1][key], rtol=1e-4), key


def test_losses_by_hand(make, dense_batch_factory):
    inputs, samples = dense_batch_factory(SIZES)
    model = frozen(make(pseudo_label_pipeline=KEEP, mix=None))
    student = copy.deepcopy(model.student)
    seed_all()
    losses = model(inputs, samples, mode='loss')
    with torch.no_grad():
        supervised = student.loss(inputs['sup'], samples['sup'])
        features = student.extract_feat(inputs['unsup_teacher'])
        seed_all()
        dropped = [torch.nn.functional.dropout2d(f) for f in features]
        weak, perturbed = (
            resize_logits(student, decode(student, f), (16, 24))
            for f in (features, dropped))
        strong = [dense_logits(student, inputs[view]) for view in VIEWS[2:]]
    confidence, label = weak.softmax(1).max(1)
    valid = torch.ones(2, 16, 24, dtype=torch.bool)
    valid[1, 12:] = False
    for name, logits, weight in (('s1', strong[0], .125),
                                 ('s2', strong[1], .125), ('fp', perturbed,
                                                           .25)):
        expected = weight * thresholded_loss(logits, label, confidence, valid,
                                             .3)
        assert torch.allclose(
            losses[f'unsup_loss_{name}'], expected, rtol=1e-4), name
    assert torch.allclose(losses['sup_decode.loss_ce'],
                          .5 * supervised['decode.loss_ce'])
    assert torch.allclose(losses['sup_aux.loss_ce'],
                          .5 * supervised['aux.loss_ce'])


def test_labels_come_from_the_same_pass(make, dense_batch_factory,
                                        monkeypatch):
    inputs, samples = dense_batch_factory(SIZES)
    model = make(pseudo_label_pipeline=KEEP)
    passes, heads, labelled = [], [], []
    model.student.backbone.register_forward_hook(
        lambda _, args, out: passes.append(
            (len(args[0]), model.student.training)))
    model.student.decode_head.conv_seg.register_forward_hook(
        lambda _, args, out: heads.append(out))
    of_logits = model.pseudo_labels_of
    monkeypatch.setattr(
        model, 'pseudo_labels_of', lambda logits, *views: labelled.append(
            logits) or of_logits(logits, *views))
    model(inputs, samples, mode='loss')
    # Labelled and weak, then both strong views, in training mode.
    assert passes == [(4, True), (4, True)]
    # Labelled, weak and perturbed, strong.
    assert [len(out) for out in heads] == [2, 4, 4]
    expected = resize_logits(model.student, heads[1], (16, 24))[:2]
    assert len(labelled) == 1 and torch.equal(labelled[0], expected)


def test_gradients_do_not_pass_the_labels(make, dense_batch_factory):
    model = make(pseudo_label_pipeline=KEEP, mix=None)
    inputs, samples = dense_batch_factory(SIZES)
    inputs['unsup_teacher'].requires_grad_()
    frozen(model)
    losses = model(inputs, samples, mode='loss')
    (losses['unsup_loss_s1'] + losses['unsup_loss_s2']).backward(
        retain_graph=True)
    assert inputs['unsup_teacher'].grad is None or not inputs[
        'unsup_teacher'].grad.any()
    losses['unsup_loss_fp'].backward()
    assert inputs['unsup_teacher'].grad.abs().sum() > 0


def test_dropped_features_are_half_of_the_channels(make, dense_batch_factory,
                                                   monkeypatch):
    model, seen = make(), []
    mapped = unimatch.map_features
    monkeypatch.setattr(
        unimatch, 'map_features', lambda features, function: seen.append(
            (features, mapped(features, function))) or seen[-1][1])
    model(*dense_batch_factory(SIZES), mode='loss')
    (before, after), = seen
    shares = []
    for x, y in zip(before, after):
        kept = y.flatten(2).abs().sum(2) > 0
        shares.append(kept.float().mean().item())
        assert torch.allclose(y[kept], 2 * x[kept])
    assert .2 < np.mean(shares) < .8


def test_teacher_may_label(make, dense_batch_factory):
    model = make(teacher=dict(mode='ema'), pseudo_label_pipeline=KEEP)
    passes = []
    model.teacher.backbone.register_forward_hook(
        lambda _, args, out: passes.append(len(args[0])))
    losses = model(*dense_batch_factory(SIZES), mode='loss')
    assert passes == [2] and losses['unsup_loss_s1'] > 0


def test_sizes_may_differ(make, dense_batch_factory):
    inputs, samples = dense_batch_factory(dict(SIZES, sup=(3, 24, 24)))
    model = make(pseudo_label_pipeline=KEEP)
    losses = model(inputs, samples, mode='loss')
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.student.parameters())


def test_partners_are_labelled_once(make, dense_batch_factory):
    partners = ('unsup_partner_teacher', 'unsup_partner_student')
    inputs, samples = dense_batch_factory(
        dict(SIZES, **dict.fromkeys(partners, (2, 16, 24))))
    model, passes = make(), []
    model.student.backbone.register_forward_hook(
        lambda _, args, out: passes.append(
            (len(args[0]), model.student.backbone.training)))
    model(inputs, samples, mode='loss')
    # The partners in evaluation mode, as in the released code.
    assert passes == [(4, True), (2, False), (4, True)]


def test_strong_views_are_mixed_apart(make, dense_batch_factory, monkeypatch):
    model, plans = make(mix=dict(type='mmsemi.CutMix', prob=1.)), []
    plan = model.mix.plan
    monkeypatch.setattr(model.mix, 'plan',
                        lambda *args: plans.append(plan(*args)) or plans[-1])
    model(*dense_batch_factory(SIZES), mode='loss')
    assert len(plans) == 2
    assert not torch.equal(plans[0].take, plans[1].take)


@pytest.mark.parametrize('view', ['unsup_student', 'unsup_student_2'])
@pytest.mark.parametrize('version', ['UniMatch', 'UniMatchV2'])
def test_both_strong_views_are_checked(make, dense_batch_factory, version,
                                       view):
    inputs, samples = dense_batch_factory(SIZES)
    samples[view][0].set_metainfo(dict(img_shape=(10, 10)))
    with pytest.raises(ValueError, match=f"'{view}' differ in their geom"):
        make(version)(inputs, samples, mode='loss')
    del inputs[view]
    with pytest.raises(ValueError, match=f"lacks the views.*'{view}'"):
        make(version)(inputs, samples, mode='loss')


@pytest.mark.parametrize('drop', [-.1, 1.])
def test_bad_feature_drop(make, drop):
    with pytest.raises(ValueError, match=f'feature_drop={drop}'):
        make(feature_drop=drop)


# Version 2 ----------------------------------------------------------------


def test_masks_are_complementary():
    torch.manual_seed(0)
    features = torch.ones(12, 32, 2, 3), (torch.ones(12, 32, 4),
                                          torch.ones(12, 16))
    first, (second, third) = complementary_dropout(features, 6, .5)
    for part in (first, second, third):
        assert torch.equal(part[:6] + part[6:], torch.full_like(part[:6], 2.))
        whole = (part == 1).flatten(1).all(1)
        # Three of six pairs keep all channels, in both of their views.
        assert whole.sum() == 6 and torch.equal(whole[:6], whole[6:])
        rest = part[~whole]
        assert set(rest.unique().tolist()) == {0., 2.}
        assert .3 < (rest > 0).float().mean() < .7
    # Levels of as many channels share the draw, and whole channels drop.
    assert torch.equal(first[..., 0, 0], second[..., 0])
    assert torch.equal(first, first[..., :1, :1].expand_as(first))


@pytest.mark.parametrize('share, num, whole', [(0., 4, 0), (1., 4, 4),
                                               (.5, 3, 1), (.5, 1, 0)])
def test_share_of_pairs_without_dropout(share, num, whole):
    torch.manual_seed(0)
    found = complementary_dropout(torch.ones(2 * num, 64, 1, 1), num, share)
    assert (found == 1).flatten(1).all(1).sum() == 2 * whole


def test_losses_of_version_2_by_hand(make, dense_batch_factory):
    inputs, samples = dense_batch_factory(SIZES)
    model = frozen(
        make('UniMatchV2', pseudo_label_pipeline=KEEP, mix=None))
    student, teacher = model.student, model.teacher
    seed_all()
    losses = model(inputs, samples, mode='loss')
    with torch.no_grad():
        confidence, label = dense_logits(
            teacher, inputs['unsup_teacher']).softmax(1).max(1)
        seed_all()
        features = complementary_dropout(
            student.extract_feat(
                torch.cat([inputs[view] for view in VIEWS[2:]])), 2)
        logits = resize_logits(student, decode(student, features), (16, 24))
    valid = torch.ones(2, 16, 24, dtype=torch.bool)
    valid[1, 12:] = False
    for name, part in zip(('s1', 's2'), logits.chunk(2)):
        expected = .25 * thresholded_loss(part, label, confidence, valid, .3)
        assert torch.allclose(
            losses[f'unsup_loss_{name}'], expected, rtol=1e-4), name


def test_defaults_of_version_2(make):
    model = make('UniMatchV2')
    assert type(model) is UniMatchV2 and model.teacher is not None
    assert model.dropout_keep_share == .5
    assert model.teacher_settings.momentum == .004


def test_version_2_trains(make, dense_batch_factory):
    model = make(
        'UniMatchV2',
        mix=dict(type='mmsemi.CutMix', partner='batch_flip'),
        pseudo_label_pipeline=KEEP)
    losses = model(
        *dense_batch_factory(dict.fromkeys(VIEWS, (3, 16, 24))), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.student.parameters())


@pytest.mark.parametrize('share', [-.1, 1.1])
def test_bad_keep_share(make, share):
    with pytest.raises(ValueError, match=f'dropout_keep_share={share}'):
        make('UniMatchV2', dropout_keep_share=share)
