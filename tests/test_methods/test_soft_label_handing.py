# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Soft labels on their way from the teacher's heads to the student's."""
import copy

import pytest
import torch
from torch import nn

from mmsemi.methods import SemiInstanceSegmentor, load_segmentor_config
from mmsemi.methods.soft_label_emission import (emitting_soft_labels,
                                                soft_label_modules)
from mmsemi.pseudo_labels import PseudoLabelStage

SOFT_LOSS = dict(type='mmsemi.SoftCrossEntropyLoss')
BOXES = [[5, 6, 31, 29], [32, 20, 55, 46], [8, 36, 28, 48]]
SOFT = [[.7, .1, .1, .1], [.2, .3, .1, .4], [.0, .0, .9, .1]]


class NeedsSoftLabels(PseudoLabelStage):
    """Drops what is likely background."""

    requires = ('soft_labels', 'labels')

    def forward(self, pseudo_labels, data_samples):
        return [p[p.soft_labels[:, -1] < .3] for p in pseudo_labels]


class LosesSoftLabels(PseudoLabelStage):
    """Builds its result anew and forgets a field."""

    def forward(self, pseudo_labels, data_samples):
        for label in pseudo_labels:
            del label.soft_labels
        return pseudo_labels


def with_soft_heads(config: dict) -> dict:
    """Exchange the heads of mmdet for those of mmsemi."""
    config = load_segmentor_config(config)
    if 'roi_head' in config:
        config.roi_head.type = 'mmsemi.SoftLabelRoIHead'
        config.roi_head.bbox_head.type = 'mmsemi.SoftLabelShared2FCBBoxHead'
        config.roi_head.bbox_head.loss_cls.update(SOFT_LOSS)
    else:
        config.panoptic_head.type = 'mmsemi.SoftLabelMask2FormerHead'
        config.panoptic_head.loss_cls.update(SOFT_LOSS)
        config.panoptic_fusion_head.type = 'mmsemi.QueryFusionHead'
    return config


@pytest.fixture(scope='module')
def models():
    """Built models by name."""
    return {}


@pytest.fixture
def build(models, tiny_segmentor_config):

    def build_once(name: str) -> SemiInstanceSegmentor:
        if name not in models:
            torch.manual_seed(0)
            models[name] = SemiInstanceSegmentor(
                with_soft_heads(tiny_segmentor_config(name)),
                pseudo_label_pipeline=[
                    dict(type='mmsemi.FilterByScore', score_thr=0.)
                ],
                soft_labels=True)
            if name == 'mask2former':
                # Untrained queries shall find something.
                models[name].teacher.panoptic_head.cls_embed.bias.data[-1] = -9
        models[name].train()
        models[name].zero_grad()
        return models[name]

    return build_once


@pytest.fixture
def found(instances_factory):
    """InstanceData: Three instances of a view of 48 x 56 pixels."""
    label = instances_factory(BOXES, [0, 1, 2], (48, 56), [.9, .2, .8])
    label.soft_labels = torch.tensor(SOFT)
    label.mask_scores = torch.tensor([.9, .8, .7])
    return label


@pytest.fixture
def learned(monkeypatch, batch_factory, sample_factory):
    """callable: Train on what the teacher is made to find.

    It returns what the student gets for ground truth, and the losses.
    """

    def train(model, instances):
        emitted = []

        def predict(inputs, data_samples, rescale=True):
            emitted.append(
                [m.emit_soft_labels for m in soft_label_modules(model)])
            for sample in data_samples:
                sample.pred_instances = copy.deepcopy(instances)
            return data_samples

        def loss(inputs, data_samples):
            # Heads change the samples they are given.
            seen.append([copy.deepcopy(s.gt_instances) for s in data_samples])
            assert not any(m.emit_soft_labels
                           for m in soft_label_modules(model))
            return student_loss(inputs, data_samples)

        seen, student_loss = [], model.student.loss
        monkeypatch.setattr(model.teacher, 'predict', predict)
        monkeypatch.setattr(model.student, 'loss', loss)
        inputs, samples = batch_factory()
        samples['unsup_teacher'] = samples['unsup_student'] = [
            sample_factory((48, 56), (64, 64)) for _ in range(2)
        ]
        losses = model(inputs, samples, mode='loss')
        # The teacher's modules come second and were asked; not the student's.
        half = len(emitted[0]) // 2
        assert half > 0
        assert emitted == [[False] * half + [True] * half]
        return seen, losses

    return train


def test_modules_are_asked_and_restored():
    model = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity())
    model[0].emit_soft_labels = False
    model[2].emit_soft_labels = True
    assert soft_label_modules(model) == [model[0], model[2]]
    with pytest.raises(RuntimeError, match='broken'):
        with emitting_soft_labels(model) as same:
            assert same is model
            assert model[0].emit_soft_labels and model[2].emit_soft_labels
            raise RuntimeError('broken')
    assert model[0].emit_soft_labels is False
    assert model[2].emit_soft_labels is True


@pytest.mark.parametrize('name', ['mask_rcnn', 'mask2former'])
def test_teacher_gives_probabilities_of_all_classes(name, build,
                                                    sample_factory):
    model = build(name)
    label, = model.predict_unfiltered(
        torch.randn(1, 3, 64, 64), [sample_factory((48, 56), (64, 64))])
    assert len(label) > 0
    assert label.soft_labels.shape == (len(label), 4)
    assert label.soft_labels.dtype == torch.float32
    assert torch.allclose(label.soft_labels.sum(1), torch.ones(len(label)))
    assert torch.equal(label.soft_labels[:, :-1].argmax(1), label.labels)
    assert ('mask_scores' in label) == (name == 'mask2former')
    assert not any(m.emit_soft_labels for m in soft_label_modules(model))
    assert not model.teacher.training


@pytest.mark.parametrize('name', ['mask_rcnn', 'mask2former'])
def test_student_learns_the_kept_rows(name, build, learned, found,
                                      monkeypatch):
    model = build(name)
    monkeypatch.setattr(model.pseudo_label_pipeline.stages[0], 'score_thr',
                        0.5)
    (supervised, unsupervised), losses = learned(model, found)
    assert all('soft_labels' not in instances for instances in supervised)
    for instances in unsupervised:
        torch.testing.assert_close(instances.soft_labels,
                                   torch.tensor(SOFT)[[0, 2]])
        assert instances.labels.tolist() == [0, 2]
        # Padded to the batch.
        assert instances.masks.to_ndarray().shape == (2, 64, 64)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)


@pytest.mark.parametrize('name', ['mask_rcnn', 'mask2former'])
def test_nothing_found(name, build, learned, found):
    model = build(name)
    (_, unsupervised), losses = learned(model, found[:0])
    assert unsupervised[0].soft_labels.shape == (0, 4)
    unsup = [
        value for key, value in losses.items()
        if key.startswith('unsup_') and 'loss' in key
    ]
    flat = [v for value in unsup
            for v in (value if isinstance(value, list) else [value])]
    assert flat and all(float(v) == 0. for v in flat)
    sum(v.sum() for v in flat).backward()
    grads = [p.grad for p in model.student.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)


def test_stages_see_what_the_student_need_not_learn(build, learned, found,
                                                    monkeypatch):
    model = build('mask2former')
    monkeypatch.setattr(model, 'soft_labels', False)
    monkeypatch.setitem(model.pseudo_label_pipeline.stages._modules, '0',
                        NeedsSoftLabels())
    (_, unsupervised), _ = learned(model, found)
    for instances in unsupervised:
        assert 'soft_labels' not in instances
        assert instances.labels.tolist() == [0, 2]


def test_labels_that_got_lost_are_missed(build, learned, found, monkeypatch):
    model = build('mask2former')
    monkeypatch.setitem(model.pseudo_label_pipeline.stages._modules, '0',
                        LosesSoftLabels())
    with pytest.raises(RuntimeError, match='carry none.*a stage'):
        learned(model, found)


def test_projection_moves_them_along(build, found, sample_factory):
    model = build('mask2former')
    crop = torch.tensor([[1., 0, -30], [0, 1, -16], [0, 0, 1]]).numpy()
    moved, = model.project([found], [sample_factory((48, 56))],
                           [sample_factory((32, 26), homography=crop)])
    # Of the first a column is left, of the third nothing.
    assert moved.labels.tolist() == [0, 1]
    torch.testing.assert_close(moved.soft_labels, torch.tensor(SOFT)[:2])
    assert len(found.soft_labels) == 3


def test_pipeline_knows_what_the_heads_give(tiny_segmentor_config):
    soft = with_soft_heads(tiny_segmentor_config('mask2former'))
    SemiInstanceSegmentor(
        soft,
        pseudo_label_pipeline=[
            NeedsSoftLabels(),
            dict(type='mmsemi.FilterByMaskQuality', min_mask_score=.5)
        ])
    with pytest.raises(ValueError, match="needs .'soft_labels'"):
        SemiInstanceSegmentor(
            tiny_segmentor_config('solov2'),
            pseudo_label_pipeline=[NeedsSoftLabels()])


@pytest.mark.parametrize('name, heads', [
    ('solov2', 'mask_head=SOLOV2Head'),
    ('mask_rcnn', 'roi_head.bbox_head=Shared2FCBBoxHead'),
    ('mask2former', 'panoptic_fusion_head=MaskFormerFusionHead'),
])
def test_heads_without_soft_labels_are_named(name, heads,
                                             tiny_segmentor_config):
    with pytest.raises(ValueError, match=f'none of the heads.*{heads}'):
        SemiInstanceSegmentor(tiny_segmentor_config(name), soft_labels=True)


def test_heads_that_give_but_do_not_learn_are_named(tiny_segmentor_config):
    config = with_soft_heads(tiny_segmentor_config('mask2former'))
    config.panoptic_head.type = 'Mask2FormerHead'
    with pytest.raises(
            ValueError,
            match='would not learn .*panoptic_head=Mask2FormerHead'
            '.*mmsemi.SoftLabelMask2FormerHead'):
        SemiInstanceSegmentor(config, soft_labels=True)
    config = with_soft_heads(tiny_segmentor_config('mask_rcnn'))
    config.roi_head.type = 'StandardRoIHead'
    with pytest.raises(ValueError, match='Use mmsemi.SoftLabelRoIHead'):
        SemiInstanceSegmentor(config, soft_labels=True)
    # Hard labels need no more than heads that give some.
    SemiInstanceSegmentor(config)
