# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Soft labels in MaskFormer and Mask2Former."""
import copy

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.structures import InstanceData, PixelData

from mmsemi.methods import load_segmentor_config
from mmsemi.structures.tensor_masks import TensorMasks

NUM_CLASSES = 3
HEADS = dict(
    maskformer='mmsemi.SoftLabelMaskFormerHead',
    mask2former='mmsemi.SoftLabelMask2FormerHead')
WEIGHT = torch.tensor([1., 1., 1., .1])
SOFT = torch.tensor([[.6, .2, .1, .1], [.05, .15, .75, .05]])
NO_OBJECT = torch.tensor([0., 0., 0., 1.])


def soft_config(config, name):
    """Return a config with the head that knows soft labels."""
    config = load_segmentor_config(copy.deepcopy(config))
    config.panoptic_head.type = HEADS[name]
    config.panoptic_head.loss_cls.type = 'mmsemi.SoftCrossEntropyLoss'
    config.panoptic_fusion_head.type = 'mmsemi.QueryFusionHead'
    config.train_cfg.assigner.match_costs[0].type = \
        'mmsemi.SoftClassificationCost'
    return config


@pytest.fixture(scope='module')
def built():
    """dict: Models by name; a test must leave them in working order."""
    return {}


@pytest.fixture(params=list(HEADS))
def models(request, built, tiny_segmentor_config):
    """tuple: mmdet's model and ours, of the same weights."""
    name = request.param
    if name not in built:
        config = tiny_segmentor_config(name)
        torch.manual_seed(0)
        plain = MODELS.build(load_segmentor_config(config))
        plain.init_weights()
        soft = MODELS.build(soft_config(config, name))
        soft.load_state_dict(plain.state_dict())
        built[name] = plain, soft
    for model in built[name]:
        model.eval().zero_grad()
    return built[name]


@pytest.fixture
def batch(batch_factory):
    inputs, samples = batch_factory()
    return inputs['sup'], samples['sup']


def with_soft_labels(samples, soft=None):
    """Give every sample's instances soft labels, one-hot by default."""
    samples = copy.deepcopy(samples)
    for sample in samples:
        instances = sample.gt_instances
        instances.soft_labels = F.one_hot(
            instances.labels,
            NUM_CLASSES + 1).float() if soft is None else soft.clone()
    return samples


def loss(model, inputs, samples):
    torch.manual_seed(1)
    return model.loss(inputs, copy.deepcopy(samples))


def assert_equal_losses(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def noted_calls(monkeypatch, model):
    """Note what the classification loss learns from soft targets."""
    calls = []
    criterion = model.panoptic_head.loss_cls
    forward = criterion.forward

    def note(*args, **kwargs):
        if 'soft_target' in kwargs:
            calls.append((*args, kwargs))
        return forward(*args, **kwargs)

    monkeypatch.setattr(criterion, 'forward', note)
    return calls


def test_without_soft_labels_it_is_mmdets(models, batch):
    plain, soft = models
    assert_equal_losses(loss(soft, *batch), loss(plain, *batch))


def test_one_hot_soft_labels_equal_labels(models, batch):
    plain, soft = models
    inputs, samples = batch
    ours = loss(soft, inputs, with_soft_labels(samples))
    assert_equal_losses(ours, loss(plain, inputs, samples))
    soft.parse_losses(ours)[0].backward()
    plain.parse_losses(loss(plain, inputs, samples))[0].backward()
    torch.testing.assert_close(soft.panoptic_head.cls_embed.weight.grad,
                               plain.panoptic_head.cls_embed.weight.grad)


def test_matched_queries_learn_soft_labels(models, batch, monkeypatch):
    _, model = models
    inputs, samples = batch
    calls = noted_calls(monkeypatch, model)
    losses = loss(model, inputs, with_soft_labels(samples, SOFT))
    layers = [name for name in losses if name.endswith('loss_cls')]
    # Every decoder layer, the last one first in the log.
    assert len(calls) == len(layers)
    for name, call in zip([*layers[1:], layers[0]], calls):
        scores, labels, weights, settings = call
        target = settings['soft_target']
        assert scores.shape == target.shape == (20, NUM_CLASSES + 1)
        matched = labels < NUM_CLASSES
        assert matched.sum() == 4
        # Labels 0 and 2 are those of the first and the second instance.
        assert torch.equal(target[matched], SOFT[labels[matched] // 2])
        assert (target[~matched] == NO_OBJECT).all()
        weighted = target * WEIGHT
        expected = -(weighted * scores.log_softmax(1)).sum() / weighted.sum()
        factor = model.panoptic_head.loss_cls.loss_weight
        torch.testing.assert_close(losses[name], factor * expected)
        torch.testing.assert_close(settings['avg_factor'], weighted.sum())
        # Not the weights of the hard labels.
        assert settings['avg_factor'] != WEIGHT[labels].sum()
    assert model.panoptic_head._cls_targets is None


def test_images_with_and_without_soft_labels(models, batch, monkeypatch):
    _, model = models
    inputs, samples = batch
    samples = [samples[0], *with_soft_labels(samples[1:], SOFT)]
    calls = noted_calls(monkeypatch, model)
    loss(model, inputs, samples)
    _, labels, _, settings = calls[-1]
    target = settings['soft_target']
    assert torch.equal(target[:10], F.one_hot(labels[:10], 4).float())
    matched = labels[10:] < NUM_CLASSES
    assert torch.equal(target[10:][matched], SOFT[labels[10:][matched] // 2])


@pytest.mark.parametrize('instances', ['none', 'none in one image'])
def test_no_instances(models, batch, instances):
    plain, model = models
    inputs, samples = batch
    for sample in samples[:None if instances == 'none' else 1]:
        sample.gt_instances = sample.gt_instances[:0]
    theirs = loss(plain, inputs, samples)
    ours = loss(model, inputs, with_soft_labels(samples))
    assert_equal_losses(ours, theirs)
    total, _ = model.parse_losses(ours)
    assert torch.isfinite(total)
    total.backward()
    gradient = model.panoptic_head.cls_embed.weight.grad
    assert torch.isfinite(gradient).all() and gradient.any()


def test_half_precision(models, batch):
    _, model = models
    head = model.panoptic_head
    inputs, samples = batch
    samples = with_soft_labels(samples, SOFT)
    with torch.no_grad():
        scores, masks = head(model.extract_feat(inputs), samples)
    metas = [sample.metainfo for sample in samples]
    instances = head.preprocess_gt(
        [sample.gt_instances for sample in samples], [None, None])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        found.append(
            head._loss_by_feat_single(scores[-1].to(dtype), masks[-1],
                                      instances, metas)[0])
    assert found[1].dtype == torch.float32
    assert found[1].item() == pytest.approx(found[0].item(), rel=.02)


def test_soft_labels_decide_the_matching(models):
    """Of two like instances each gets the query of its likely class."""
    _, model = models
    head = model.panoptic_head
    instances = InstanceData(
        labels=torch.tensor([0, 0]),
        masks=torch.ones(2, 8, 8).long(),
        soft_labels=torch.tensor([[.5, .5, 0., 0.], [.5, 0., .5, 0.]]))
    scores = torch.full((10, 4), -9.)
    scores[:, 3] = 9.
    # The second query is of class 2, the fourth of class 1.
    scores[1] = torch.tensor([0., -9., 3., -9.])
    scores[3] = torch.tensor([0., 3., -9., -9.])
    masks = torch.full((10, 8, 8), 5.)
    targets = head._get_targets_single(scores, masks, instances,
                                       dict(img_shape=(8, 8)))
    target = targets[-1]
    assert torch.equal(target[1], instances.soft_labels[1])
    assert torch.equal(target[3], instances.soft_labels[0])
    rest = [i for i in range(10) if i not in (1, 3)]
    assert (target[rest] == NO_OBJECT).all()


def test_stuff_gets_the_targets_of_its_labels(models, monkeypatch):
    _, model = models
    head = model.panoptic_head
    monkeypatch.setattr(head, 'num_things_classes', 2)
    monkeypatch.setattr(head, 'num_stuff_classes', 1)
    stuff = torch.full((1, 4, 4), 255)
    stuff[0, 2:] = 2
    things = InstanceData(
        labels=torch.tensor([1]),
        masks=TensorMasks(torch.ones(1, 4, 4, dtype=torch.bool)),
        soft_labels=torch.tensor([[.3, .6, 0., .1]]))
    found, = head.preprocess_gt([things], [PixelData(sem_seg=stuff)])
    assert found.labels.tolist() == [1, 2]
    torch.testing.assert_close(
        found.soft_labels, torch.tensor([[.3, .6, 0., .1], [0., 0., 1., 0.]]))


def test_loss_that_knows_no_soft_labels(tiny_segmentor_config):
    config = soft_config(tiny_segmentor_config('mask2former'), 'mask2former')
    config.panoptic_head.loss_cls.type = 'CrossEntropyLoss'
    with pytest.raises(ValueError, match='panoptic_head.loss_cls'):
        MODELS.build(config)
