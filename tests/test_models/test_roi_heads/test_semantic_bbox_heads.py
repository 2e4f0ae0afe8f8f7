# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The semantic branch in Mask R-CNN."""
import copy

import pytest
import torch
from mmdet.registry import MODELS

from mmsemi.methods import load_segmentor_config

CLASSES = ('crab', 'eel', 'starfish')
PREDICTOR = dict(
    type='mmsemi.SemanticClsPredictor',
    text_embeddings=dict(model='char-ngrams', classes=CLASSES))
SOFT = torch.tensor([[.6, .2, .1, .1], [.05, .15, .75, .05]])


def semantic_config(config, soft=False, **branch):
    config = load_segmentor_config(copy.deepcopy(config))
    head = config.roi_head.bbox_head
    head.type = 'mmsemi.SemanticShared2FCBBoxHead'
    head.cls_predictor_cfg = {**copy.deepcopy(PREDICTOR), **branch}
    if soft:
        config.roi_head.type = 'mmsemi.SoftLabelRoIHead'
        head.type = 'mmsemi.SemanticSoftLabelShared2FCBBoxHead'
        head.loss_cls.type = 'mmsemi.SoftCrossEntropyLoss'
    return config


@pytest.fixture(scope='module')
def built():
    """dict: Models by name; a test must leave them in working order."""
    return {}


@pytest.fixture
def models(built, tiny_segmentor_config):
    """tuple: mmdet's Mask R-CNN and two with the branch, of its weights."""
    if not built:
        config = tiny_segmentor_config('mask_rcnn')
        torch.manual_seed(0)
        built['plain'] = MODELS.build(load_segmentor_config(config))
        built['hard'] = MODELS.build(semantic_config(config, gate=0.))
        built['soft'] = MODELS.build(semantic_config(config, True))
        for name in ('hard', 'soft'):
            missing, unexpected = built[name].load_state_dict(
                built['plain'].state_dict(), strict=False)
            assert unexpected == []
            assert all('.fc_cls.branch.' in key for key in missing)
    for model in built.values():
        model.train().zero_grad()
    return built['plain'], built['hard'], built['soft']


@pytest.fixture
def batch(batch_factory):
    inputs, samples = batch_factory()
    return inputs['sup'], samples['sup']


def loss(model, inputs, samples):
    torch.manual_seed(1)
    return model.loss(inputs, copy.deepcopy(samples))


def test_gate_0_is_mmdets(models, batch):
    plain, model, _ = models
    theirs, ours = loss(plain, *batch), loss(model, *batch)
    assert set(ours) - set(theirs) == {'loss_cls_semantic', 'acc_semantic'}
    for name, value in theirs.items():
        pairs = zip(ours[name], value) if isinstance(
            value, list) else [(ours[name], value)]
        assert all(torch.equal(a, b) for a, b in pairs), name


def test_semantic_logits_learn_the_same_alone(models, batch, monkeypatch):
    *_, model = models
    inputs, samples = batch
    samples = copy.deepcopy(samples)
    samples[0].gt_instances.soft_labels = SOFT.clone()
    calls = []
    criterion = model.roi_head.bbox_head.loss_cls
    forward = criterion.forward
    monkeypatch.setattr(
        criterion, 'forward', lambda *args, **kwargs: calls.append(
            (args, kwargs)) or forward(*args, **kwargs))
    losses = loss(model, inputs, samples)
    (fused, *targets), settings = calls[0]
    (semantic, *semantic_targets), semantic_settings = calls[1]
    assert semantic.shape == fused.shape
    assert not torch.equal(semantic, fused)
    for ours, theirs in zip(semantic_targets, targets):
        assert torch.equal(ours, theirs)
    assert torch.equal(semantic_settings['soft_target'],
                       settings['soft_target'])
    assert semantic_settings['avg_factor'] == settings['avg_factor']
    alone = forward(semantic, *targets, **settings)
    torch.testing.assert_close(losses['loss_cls_semantic'], .5 * alone)
    model.parse_losses(losses)[0].backward()
    branch = model.roi_head.bbox_head.fc_cls.branch
    for name, parameter in branch.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    copy.deepcopy(model.roi_head.bbox_head)


def test_prediction_records_nothing(models, batch):
    *_, model = models
    inputs, samples = batch
    model.eval()
    with torch.no_grad():
        results = model.predict(inputs, copy.deepcopy(samples))
    assert len(results) == 2
    assert model.roi_head.bbox_head._semantic_logits == []


def test_initialisation_keeps_the_branch(tiny_segmentor_config):
    config = semantic_config(tiny_segmentor_config('mask_rcnn'), gate=.6)
    head = MODELS.build(config.roi_head.bbox_head)
    before = head.fc_cls.branch.text_vectors.clone()
    head.init_weights()
    branch = head.fc_cls.branch
    assert branch.gate.item() == pytest.approx(.6)
    assert torch.equal(branch.text_vectors, before)
    assert head.fc_cls.weight.std() < .02 < branch.visual.weight.std()


@pytest.mark.parametrize('change, words', [
    (dict(num_classes=4), 'num_classes=4'),
    (dict(cls_predictor_cfg=dict(type='Linear')), 'SemanticClsPredictor'),
])
def test_wrong_heads_are_refused(tiny_segmentor_config, change, words):
    config = semantic_config(tiny_segmentor_config('mask_rcnn'))
    head = config.roi_head.bbox_head
    head.pop('cls_predictor_cfg' if 'cls_predictor_cfg' in change else '', 0)
    head.update(change)
    with pytest.raises(ValueError, match=words):
        MODELS.build(head)


def test_head_with_convolutions():
    head = MODELS.build(
        dict(
            type='mmsemi.SemanticShared4Conv1FCBBoxHead',
            in_channels=4,
            conv_out_channels=4,
            fc_out_channels=8,
            num_classes=3,
            roi_feat_size=2,
            cls_predictor_cfg=copy.deepcopy(PREDICTOR)))
    scores, deltas = head.train()(torch.randn(5, 4, 2, 2))
    assert (scores.shape, deltas.shape) == ((5, 4), (5, 12))
    assert [logits.shape for logits in head._semantic_logits] == [(5, 4)]
