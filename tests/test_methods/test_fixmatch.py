# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import random

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

from mmsemi.datasets.transforms.mix import CutMix
from mmsemi.methods import FixMatch
from mmsemi.models.dense_forward import dense_logits
from mmsemi.models.losses import LossNormalizer
from mmsemi.registry import MODELS


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


@pytest.fixture
def make(dense_segmentor_config):

    def build(**kwargs):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(
                type='mmsemi.FixMatch',
                segmentor=dense_segmentor_config(),
                **kwargs))
        model.init_weights()
        model.student.decode_head.conv_seg.weight.data *= 100
        model.copy_student_to_teacher()
        return model

    return build


def test_defaults(make):
    model = make()
    assert type(model) is FixMatch and isinstance(model.mix, CutMix)
    assert (model.mix.prob, model.mix.area_range) == (.5, (.02, .4))
    stage, = model.pseudo_label_pipeline.stages
    assert stage.conf_thr == .95
    assert model.teacher_settings.momentum == .004
    assert (model.sup_weight, model.unsup_weight(0)) == (.5, .5)
    assert model.normalizer is LossNormalizer.VALID


@pytest.mark.parametrize('normalizer', ['valid', 'kept'])
@pytest.mark.parametrize('teacher', [None, dict(mode='student')])
def test_loss_by_hand(make, dense_batch_factory, normalizer, teacher):
    inputs, samples = dense_batch_factory()
    model = make(
        mix=None,
        teacher=teacher,
        normalizer=normalizer,
        pseudo_label_pipeline=[
            dict(type='mmsemi.KeepConfidentPixels', conf_thr=.45)
        ])
    student, labeler = copy.deepcopy(model.student), model.teacher
    losses = model(inputs, samples, mode='loss')
    with torch.no_grad():
        supervised = student.loss(inputs['sup'], samples['sup'])
        if labeler is None:
            # With the statistics that the labelled images left.
            labeler = copy.deepcopy(student).eval()
        confidence, label = dense_logits(
            labeler, inputs['unsup_teacher']).softmax(1).max(1)
        logits = dense_logits(student, inputs['unsup_student'])
    valid = torch.ones(2, 16, 24, dtype=torch.bool)
    valid[1, 12:] = False
    kept = (confidence >= .45) & valid
    assert 0 < kept.sum() < valid.sum()
    pixel_loss = -logits.log_softmax(1).gather(1, label[:, None])[:, 0]
    num = (valid if normalizer == 'valid' else kept).sum()
    expected = .5 * pixel_loss[kept].sum() / num
    assert torch.allclose(losses['unsup_loss'], expected, rtol=1e-4)
    for key in ('decode.loss_ce', 'aux.loss_ce'):
        assert torch.equal(losses[f'sup_{key}'], .5 * supervised[key])


@pytest.mark.parametrize('normalizer', ['valid', 'kept', 'kept_rescaled',
                                        'all'])
def test_nothing_confident_still_gives_gradients(make, dense_batch_factory,
                                                 normalizer):
    model = make(
        normalizer=normalizer,
        pseudo_label_pipeline=[
            dict(type='mmsemi.KeepConfidentPixels', conf_thr=1.)
        ])
    losses = model(*dense_batch_factory(), mode='loss')
    assert losses['unsup_loss'] == 0 and losses['pseudo/kept_share'] == 0
    losses['unsup_loss'].backward()
    assert all((p.grad == 0).all() for p in model.student.backbone.parameters()
               )


def test_mixing_is_drawn_from_the_seeds(make, dense_batch_factory):
    batch, found = dense_batch_factory(), []
    stage = dict(type='mmsemi.KeepConfidentPixels', conf_thr=.3)
    model = make(pseudo_label_pipeline=[stage])
    for seed in (0, 0, 1):
        random.seed(seed)
        np.random.seed(seed)
        found.append(
            copy.deepcopy(model)(*batch, mode='loss')['unsup_loss'].item())
    assert found[0] == found[1] != found[2]


def test_training_learns(make, dense_batch_factory):
    """A few steps on one batch lower both losses."""
    model = make(
        mix=None,
        teacher=dict(mode='frozen'),
        pseudo_label_pipeline=[
            dict(type='mmsemi.KeepConfidentPixels', conf_thr=.3)
        ])
    batch, totals = dense_batch_factory(), []
    optimizer = torch.optim.SGD(model.student.parameters(), lr=.05)
    for _ in range(6):
        losses = model(*batch, mode='loss')
        total, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        model.update_teacher()
        totals.append(losses['unsup_loss'].item())
    assert totals[-1] < .8 * totals[0]


@pytest.mark.parametrize('settings', [
    {},
    dict(teacher=dict(mode='student')),
    dict(teacher=dict(mode='student'), label_in_train_mode=True),
])
def test_mixed_precision(make, dense_batch_factory, settings):
    """Weights that labelling has cast without gradient would get none."""
    stage = dict(type='mmsemi.KeepConfidentPixels', conf_thr=.3)
    model = make(pseudo_label_pipeline=[stage], **settings)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(*dense_batch_factory(), mode='loss')
        losses['unsup_loss'].backward()
    assert losses['unsup_loss'].dtype == torch.float32
    heads = model.student.auxiliary_head.parameters()
    without = {id(p) for p in heads}
    assert all(p.grad is not None and p.grad.isfinite().all()
               for p in model.student.parameters() if id(p) not in without)


def test_unknown_normalizer(make):
    with pytest.raises(ValueError, match="normalizer='mean'.*'kept'"):
        make(normalizer='mean')
