# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The semantic branch in MaskFormer and Mask2Former."""
import copy

import pytest
import torch
from mmdet.registry import MODELS

from mmsemi.methods import load_segmentor_config

NUM_CLASSES = 3
BRANCH = dict(
    text_embeddings=dict(
        model='char-ngrams', classes=('crab', 'eel', 'starfish')))
HEADS = dict(maskformer='MaskFormerHead', mask2former='Mask2FormerHead')
SOFT = torch.tensor([[.6, .2, .1, .1], [.05, .15, .75, .05]])


def semantic_config(config, name, soft=False, **branch):
    config = load_segmentor_config(copy.deepcopy(config))
    head = config.panoptic_head
    head.semantic_branch = {**copy.deepcopy(BRANCH), **branch}
    head.type = f'mmsemi.Semantic{HEADS[name]}'
    if soft:
        head.type = f'mmsemi.SemanticSoftLabel{HEADS[name]}'
        head.loss_cls.type = 'mmsemi.SoftCrossEntropyLoss'
    return config


@pytest.fixture(scope='module')
def built():
    """dict: Models by name; a test must leave them in working order."""
    return {}


@pytest.fixture(params=list(HEADS))
def models(request, built, tiny_segmentor_config):
    """tuple: mmdet's model and two with the branch, of its weights."""
    name = request.param
    if name not in built:
        config = tiny_segmentor_config(name)
        torch.manual_seed(0)
        plain = MODELS.build(load_segmentor_config(config))
        plain.init_weights()
        hard = MODELS.build(semantic_config(config, name, gate=0.))
        soft = MODELS.build(semantic_config(config, name, True))
        for model in (hard, soft):
            model.panoptic_head.init_weights()
            missing, unexpected = model.load_state_dict(
                plain.state_dict(), strict=False)
            assert unexpected == []
            assert all('.cls_embed.branch.' in key for key in missing)
        built[name] = plain, hard, soft
    for model in built[name]:
        model.eval().zero_grad()
        # The heads have no dropout of their own here.
        model.panoptic_head.train()
    return built[name]


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
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    layers = {name for name in theirs if name.endswith('loss_cls')}
    assert set(ours) - set(theirs) == {f'{name}_semantic' for name in layers}


@pytest.mark.parametrize('with_soft', [False, True])
def test_every_layer_learns_semantic_logits_alone(models, batch, monkeypatch,
                                                  with_soft):
    *_, model = models
    inputs, samples = batch
    samples = copy.deepcopy(samples)
    for sample in samples if with_soft else ():
        sample.gt_instances.soft_labels = SOFT.clone()
    head, calls = model.panoptic_head, []
    forward = head.loss_cls.forward
    monkeypatch.setattr(
        head.loss_cls, 'forward', lambda *args, **kwargs: calls.append(
            (args, kwargs)) or forward(*args, **kwargs))
    losses = loss(model, inputs, samples)
    names = [name for name in losses if name.endswith('loss_cls_semantic')]
    # Labels, then soft labels, then the semantic logits, in every layer.
    step = 2 + with_soft
    assert len(calls) == step * len(names)
    for i, name in enumerate(sorted(names, key=lambda n: (n[0] != 'd', n))):
        (fused, *targets), settings = calls[step * i + step - 2]
        (semantic, *same), semantic_settings = calls[step * i + step - 1]
        assert fused.shape == semantic.shape == (20, NUM_CLASSES + 1)
        assert all(torch.equal(a, b) for a, b in zip(same, targets))
        assert settings.keys() == semantic_settings.keys()
        assert ('soft_target' in settings) == with_soft
        alone = forward(semantic, *targets, **settings)
        torch.testing.assert_close(losses[name], .5 * alone)
        # The logits of this layer, not of another.
        torch.testing.assert_close(losses[name.replace('_semantic', '')],
                                   forward(fused, *targets, **settings))
    model.parse_losses(losses)[0].backward()
    for name, parameter in head.cls_embed.branch.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert head._semantic_logits == head._semantic_losses == []
    copy.deepcopy(head)


def test_layers_keep_to_their_own_semantic_logits(models, batch):
    *_, model = models
    head = model.panoptic_head
    features = model.extract_feat(batch[0])
    with torch.no_grad():
        # Fused minus semantic logits must be what cls_embed alone gives.
        head.cls_embed.weight.zero_()
        head.cls_embed.bias.zero_()
    scores, _ = head(features, batch[1])
    assert len(head._semantic_logits) == len(scores)
    for fused, semantic in zip(scores, head._semantic_logits):
        torch.testing.assert_close(
            fused, head.cls_embed.branch.gate * semantic)
    head._semantic_logits = []


def test_no_instances(models, batch):
    *_, model = models
    inputs, samples = batch
    samples = copy.deepcopy(samples)
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    total, _ = model.parse_losses(loss(model, inputs, samples))
    assert total.isfinite()


def test_feature_mode_and_no_auxiliary_loss(tiny_segmentor_config, batch):
    config = tiny_segmentor_config('mask2former')
    model = MODELS.build(
        semantic_config(config, 'mask2former', mode='feature', aux_weight=0))
    losses = loss(model, *batch)
    assert not [name for name in losses if 'semantic' in name]
    model.parse_losses(losses)[0].backward()
    for name, parameter in model.panoptic_head.named_parameters():
        if 'branch' in name:
            assert parameter.grad.any(), name
