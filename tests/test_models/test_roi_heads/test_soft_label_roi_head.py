# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Soft labels in Mask R-CNN."""
import copy

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mmsemi.methods import load_segmentor_config
from mmsemi.models.label_smoothing import SimilarityLabelSmoothing
from mmsemi.models.roi_heads import (SoftLabelRoIHead,
                                     SoftLabelShared2FCBBoxHead,
                                     SoftLabelShared4Conv1FCBBoxHead)

NUM_CLASSES = 3


def soft_config(config):
    """Return a config with the heads that know soft labels."""
    config = load_segmentor_config(copy.deepcopy(config))
    roi_head = config.roi_head
    roi_head.type = 'mmsemi.SoftLabelRoIHead'
    roi_head.bbox_head.type = 'mmsemi.SoftLabelShared2FCBBoxHead'
    roi_head.bbox_head.loss_cls.type = 'mmsemi.SoftCrossEntropyLoss'
    return config


@pytest.fixture(scope='module')
def built():
    return {}


@pytest.fixture
def models(built, tiny_segmentor_config):
    """tuple: mmdet's Mask R-CNN and ours, of the same weights."""
    if not built:
        config = tiny_segmentor_config('mask_rcnn')
        torch.manual_seed(0)
        built['plain'] = MODELS.build(load_segmentor_config(config))
        built['soft'] = MODELS.build(soft_config(config))
        built['soft'].load_state_dict(built['plain'].state_dict())
    for model in built.values():
        model.train().zero_grad()
    return built['plain'], built['soft']


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
        pairs = zip(ours[name], value) if isinstance(
            value, list) else [(ours[name], value)]
        assert all(torch.equal(a, b) for a, b in pairs), name


def noted_calls(monkeypatch, model):
    """Note what the classification loss is called with."""
    calls = []
    criterion = model.roi_head.bbox_head.loss_cls
    forward = criterion.forward

    def note(*args, **kwargs):
        calls.append((args, kwargs))
        return forward(*args, **kwargs)

    monkeypatch.setattr(criterion, 'forward', note)
    return calls


# Learning ------------------------------------------------------------------


def test_without_soft_labels_it_is_mmdets(models, batch):
    plain, soft = models
    assert_equal_losses(loss(soft, *batch), loss(plain, *batch))


def test_one_hot_soft_labels_equal_labels(models, batch):
    plain, soft = models
    inputs, samples = batch
    ours = loss(soft, inputs, with_soft_labels(samples))
    assert_equal_losses(ours, loss(plain, inputs, samples))


def test_positive_rois_learn_soft_labels(models, batch, monkeypatch):
    _, model = models
    inputs, samples = batch
    soft = torch.tensor([[.6, .2, .1, .1], [.05, .15, .75, .05]])
    hard = loss(model, inputs, samples)
    calls = noted_calls(monkeypatch, model)
    losses = loss(model, inputs, with_soft_labels(samples, soft))
    (scores, labels, weights), settings = calls[0]
    target = settings['soft_target']
    assert target.shape == scores.shape == (len(labels), NUM_CLASSES + 1)
    positive = labels < NUM_CLASSES
    assert 0 < positive.sum() < len(labels)
    # Labels 0 and 2 are those of the first and the second instance.
    assert torch.equal(target[positive], soft[labels[positive] // 2])
    background = torch.tensor([0., 0., 0., 1.])
    assert (target[~positive] == background).all()
    expected = -(target * scores.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses['loss_cls'], expected)
    # Nothing but the class is learned otherwise.
    changed = [
        name for name, value in hard.items() if not isinstance(value, list)
        and not torch.equal(losses[name], value)
    ]
    assert changed == ['loss_cls']
    model.parse_losses(losses)[0].backward()
    assert torch.isfinite(model.roi_head.bbox_head.fc_cls.weight.grad).all()


def test_images_with_and_without_soft_labels(models, batch, monkeypatch):
    _, model = models
    inputs, samples = batch
    soft = torch.tensor([[.6, .2, .1, .1], [.05, .15, .75, .05]])
    samples = [samples[0], *with_soft_labels(samples[1:], soft)]
    calls = noted_calls(monkeypatch, model)
    loss(model, inputs, samples)
    (_, labels, _), settings = calls[0]
    target = settings['soft_target']
    half = len(labels) // 2
    one_hot = F.one_hot(labels, NUM_CLASSES + 1).float()
    assert torch.equal(target[:half], one_hot[:half])
    positive = labels[half:] < NUM_CLASSES
    assert positive.any()
    assert torch.equal(target[half:][positive],
                       soft[labels[half:][positive] // 2])


@pytest.mark.parametrize('instances', ['none', 'none in one image'])
def test_no_instances(models, batch, instances):
    _, model = models
    inputs, samples = batch
    samples = with_soft_labels(samples)
    for sample in samples[:None if instances == 'none' else 1]:
        sample.gt_instances = sample.gt_instances[:0]
        assert sample.gt_instances.soft_labels.shape == (0, 4)
    total, _ = model.parse_losses(loss(model, inputs, samples))
    assert torch.isfinite(total)
    total.backward()
    gradient = model.roi_head.bbox_head.fc_cls.weight.grad
    assert torch.isfinite(gradient).all() and gradient.any()


def test_half_precision(models, batch, monkeypatch):
    _, model = models
    inputs, samples = batch
    samples = with_soft_labels(samples)
    full = loss(model, inputs, samples)['loss_cls']
    head = model.roi_head.bbox_head
    forward = head.forward
    monkeypatch.setattr(head, 'forward',
                        lambda x: (forward(x)[0].bfloat16(), forward(x)[1]))
    half = loss(model, inputs, samples)['loss_cls']
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=.05)


def test_smoothing_is_for_labels_alone(models, batch, monkeypatch):
    _, model = models
    inputs, samples = batch
    smoothing = SimilarityLabelSmoothing(NUM_CLASSES)
    smoothing.set_statistics(torch.eye(NUM_CLASSES), torch.tensor([9, 1, 9]))
    head = model.roi_head.bbox_head
    plain = loss(model, inputs, samples)
    one_hot = with_soft_labels(samples)
    monkeypatch.setattr(head.loss_cls, 'smoothing', smoothing)
    assert_equal_losses(loss(model, inputs, one_hot), plain)
    smoothed = loss(model, inputs, samples)
    assert smoothed['loss_cls'] != plain['loss_cls']


# Giving --------------------------------------------------------------------


@pytest.fixture
def emitting(models, monkeypatch):
    plain, soft = models
    plain.eval()
    soft.eval()
    monkeypatch.setattr(soft.roi_head.bbox_head, 'emit_soft_labels', True)
    return plain, soft


@torch.no_grad()
def predict(model, inputs, samples, rescale=False):
    samples = model.predict(inputs, copy.deepcopy(samples), rescale)
    return [sample.pred_instances for sample in samples]


def test_evaluation_is_mmdets(models, batch):
    plain, soft = models
    plain.eval()
    soft.eval()
    assert soft.roi_head.bbox_head.emit_soft_labels is False
    for ours, theirs in zip(predict(soft, *batch), predict(plain, *batch)):
        assert len(theirs) > 0
        assert set(ours.keys()) == set(theirs.keys())
        for field in theirs.keys():
            assert torch.equal(ours[field], theirs[field])


def test_soft_labels_of_predictions(emitting, batch):
    plain, soft = emitting
    for ours, theirs in zip(predict(soft, *batch), predict(plain, *batch)):
        probs = ours.soft_labels
        assert probs.shape == (len(ours), NUM_CLASSES + 1) and len(ours) > 0
        assert probs.dtype == torch.float32
        torch.testing.assert_close(probs.sum(1), torch.ones(len(ours)))
        assert torch.equal(probs[:, :-1].argmax(1), ours.labels)
        torch.testing.assert_close(
            probs.gather(1, ours.labels[:, None])[:, 0], ours.scores)
        assert ours.masks.shape == (len(ours), 64, 64)
        # Some of mmdet's instances, in its order.
        known = [
            next(i for i in range(len(theirs)) if torch.equal(
                theirs.bboxes[i], box) and theirs.labels[i] == label)
            for box, label in zip(ours.bboxes, ours.labels)
        ]
        assert known == sorted(known) and len(set(known)) == len(known)
        assert len(known) < len(theirs)
        assert torch.equal(ours.masks, theirs.masks[known])


def test_evaluation_afterwards(emitting, batch):
    plain, soft = emitting
    predict(soft, *batch)
    soft.roi_head.bbox_head.emit_soft_labels = False
    ours, theirs = predict(soft, *batch), predict(plain, *batch)
    assert 'soft_labels' not in ours[0]
    assert torch.equal(ours[0].scores, theirs[0].scores)


def bbox_head(**settings):
    head = SoftLabelShared2FCBBoxHead(
        in_channels=2,
        fc_out_channels=4,
        roi_feat_size=1,
        num_classes=NUM_CLASSES,
        loss_cls=dict(type='mmsemi.SoftCrossEntropyLoss'),
        **settings)
    head.emit_soft_labels = True
    return head


TEST_CFG = ConfigDict(
    score_thr=.05, nms=dict(type='nms', iou_threshold=.5), max_per_img=10)


@pytest.mark.parametrize('agnostic', [False, True])
def test_one_box_of_an_roi(agnostic):
    """Of an RoI with two likely classes, and of one that is background."""
    head = bbox_head(reg_class_agnostic=agnostic)
    probs = torch.tensor([[.5, .4, .05, .05], [.1, .02, .2, .68],
                          [.01, .02, .02, .95]])
    rois = torch.tensor([[0., 2., 2., 12., 12.], [0., 20., 20., 30., 30.],
                         [0., 2., 20., 12., 30.]])
    deltas = torch.zeros(3, 4 if agnostic else 4 * NUM_CLASSES)
    result, = head.predict_by_feat([rois], [probs.log()], [deltas],
                                   [dict(img_shape=(64, 64))], TEST_CFG)
    assert result.labels.tolist() == [0, 2]
    torch.testing.assert_close(result.bboxes, rois[:2, 1:])
    torch.testing.assert_close(result.scores, torch.tensor([.5, .2]))
    torch.testing.assert_close(result.soft_labels, probs[:2])
    # Test-time augmentation asks for everything, as of mmdet's head.
    raw, = head.predict_by_feat([rois], [probs.log()], [deltas],
                                [dict(img_shape=(64, 64))], None)
    assert raw.scores.shape == (3, 4) and 'soft_labels' not in raw


def test_no_box():
    head = bbox_head()
    empty = ([torch.zeros(0, 5)], [torch.zeros(0, 4)], [torch.zeros(0, 12)])
    unlikely = ([torch.tensor([[0., 0., 0., 9., 9.]])],
                [torch.tensor([[0., 0., 0., 50.]])], [torch.zeros(1, 12)])
    for args in (empty, unlikely):
        result, = head.predict_by_feat(*args, [dict(img_shape=(64, 64))],
                                       TEST_CFG)
        assert result.soft_labels.shape == (0, 4)
        assert result.bboxes.shape == (0, 4)
        assert result.scores.shape == result.labels.shape == (0, )
        assert result.labels.dtype == torch.long


def test_no_proposal_in_the_batch(emitting, batch):
    _, model = emitting
    inputs, samples = batch
    proposals = [InstanceData(bboxes=torch.zeros(0, 4)) for _ in samples]
    with torch.no_grad():
        results = model.roi_head.predict(
            model.extract_feat(inputs), proposals, samples)
    for result in results:
        assert result.soft_labels.shape == (0, 4)
        assert len(result) == len(result.masks) == 0


def test_half_precision_predictions():
    scores = torch.tensor([[2., 1., 0., -1.], [.5, 3., .1, 1.5]]).bfloat16()
    rois = torch.tensor([[0., 2., 2., 12., 12.], [0., 20., 20., 30., 30.]])
    result, = bbox_head().predict_by_feat(
        [rois], [scores], [torch.zeros(2, 12).bfloat16()],
        [dict(img_shape=(64, 64))], TEST_CFG)
    assert result.labels.tolist() == [1, 0]
    assert result.soft_labels.dtype == torch.float32
    torch.testing.assert_close(result.soft_labels.sum(1), torch.ones(2))


# Building ------------------------------------------------------------------


def test_other_head(built):
    head = SoftLabelShared4Conv1FCBBoxHead(
        in_channels=2,
        conv_out_channels=2,
        fc_out_channels=4,
        num_classes=NUM_CLASSES,
        loss_cls=dict(type='mmsemi.SoftCrossEntropyLoss'))
    assert head.emit_soft_labels is False
    assert head(torch.zeros(2, 2, 7, 7))[0].shape == (2, 4)


def test_heads_that_know_no_soft_labels(tiny_segmentor_config):
    config = soft_config(tiny_segmentor_config('mask_rcnn')).roi_head
    config.bbox_head.loss_cls.type = 'CrossEntropyLoss'
    with pytest.raises(ValueError, match='loss_cls is CrossEntropyLoss'):
        MODELS.build(config)
    config.bbox_head.type = 'Shared2FCBBoxHead'
    with pytest.raises(ValueError, match='bbox_head is Shared2FCBBoxHead'):
        MODELS.build(config)


def test_without_training_there_is_no_sampler(tiny_segmentor_config):
    config = soft_config(tiny_segmentor_config('mask_rcnn')).roi_head
    head = MODELS.build(config)
    assert isinstance(head, SoftLabelRoIHead) and head.bbox_sampler is None
