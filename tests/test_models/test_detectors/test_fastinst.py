# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""FastInst as a detector, with all that mmsemi plugs into it."""
import copy
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[3]
BASES = ROOT / 'configs/_base_/models'
CLASSES = ('three', 'seven', 'nine')


def soft(config):
    """Let the detector learn a probability of every class."""
    head = config.panoptic_head
    head.type = 'mmsemi.SoftLabelFastInstHead'
    head.loss_cls.type = head.loss_proposal.type = \
        'mmsemi.SoftCrossEntropyLoss'
    config.train_cfg.assigner.match_costs[0].type = \
        'mmsemi.SoftClassificationCost'
    return config


def build(config):
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(config))
    model.init_weights()
    return model


def loss(model, batch):
    inputs, samples = batch
    torch.manual_seed(1)
    return model.loss(inputs['sup'], copy.deepcopy(samples['sup']))


@pytest.fixture
def model(fastinst_config):
    return build(fastinst_config())


@pytest.fixture
def batch(batch_factory):
    return batch_factory()


def test_it_trains_and_predicts(model, batch):
    losses = loss(model, batch)
    assert len(losses) == 16
    total, _ = model.parse_losses(losses)
    total.backward()
    inputs, samples = batch
    with torch.no_grad():
        results = model.eval().predict(inputs['sup'], samples['sup'])
    for result in results:
        found = result.pred_instances
        # All pairs of query and class, as there are fewer than 100.
        assert found.scores.shape == found.labels.shape == (27, )
        assert found.masks.shape == (27, 64, 64)
        assert found.masks.dtype == torch.bool


@torch.no_grad()
def test_post_processing(fastinst_config, sample_factory):
    config = fastinst_config(num_classes=2, num_queries=3)
    config.test_cfg.max_per_image = 4
    fusion = build(config).panoptic_fusion_head
    classes = torch.tensor([[2., 1, 0], [0, 3, 1], [.5, 0, 2]])
    masks = torch.tensor([[[5., -5], [1, -1]], [[-2, 2], [-2, 2]],
                          [[-1, -1], [-1, -1]]])
    found = fusion.predict(classes[None], masks[None],
                           [sample_factory((2, 2))])[0]['ins_results']
    order = found.scores.argsort(descending=True)
    assert found.scores[order].tolist() == pytest.approx(
        [.7432, .5736, .2110, 0], abs=5e-5)
    assert found.labels[order].tolist() == [1, 0, 1, 0]
    # A query may come twice, and what is empty counts nothing.
    assert torch.equal(*found.masks[order[1:3]])
    assert found.scores.min() == 0 and not found.masks[order[3]].any()


def test_batch_statistics_never_change(model, batch):
    model.train()
    before = copy.deepcopy(model.backbone.state_dict())
    optimizer = torch.optim.SGD(
        (p for p in model.parameters() if p.requires_grad), lr=.1)
    model.parse_losses(loss(model, batch))[0].backward()
    optimizer.step()
    changed = {
        key
        for key, value in model.backbone.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert changed and all('conv' in key or 'downsample.0' in key
                           for key in changed)


def test_half_precision(model, batch):
    with torch.autocast('cpu', torch.bfloat16):
        losses = loss(model, batch)
    expected = loss(model, batch)
    for name, value in losses.items():
        assert torch.isfinite(value), name
    assert losses['loss_cls'].item() == pytest.approx(
        expected['loss_cls'].item(), rel=.1)


# Soft labels and smoothing -------------------------------------------------


def with_soft_labels(batch, targets):
    inputs, samples = batch
    samples = copy.deepcopy(samples)
    for sample in samples['sup']:
        sample.gt_instances.soft_labels = targets.clone()
    return inputs, samples


def test_one_hot_soft_labels_equal_labels(model, fastinst_config, batch):
    ours = build(soft(fastinst_config()))
    ours.load_state_dict(model.state_dict())
    expected = loss(model, batch)
    one_hot = torch.eye(4)[[0, 2]]
    for given in (batch, with_soft_labels(batch, one_hot)):
        found = loss(ours, given)
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)


def test_cells_and_queries_learn_soft_labels(fastinst_config, batch,
                                             monkeypatch):
    model = build(soft(fastinst_config()))
    targets = torch.tensor([[.6, .2, .1, .1], [.05, .15, .75, .05]])
    seen = {}
    for name in ('loss_cls', 'loss_proposal'):
        criterion = getattr(model.panoptic_head, name)

        def note(*args, name=name, forward=criterion.forward, **kwargs):
            seen.setdefault(name, []).append(kwargs.get('soft_target'))
            return forward(*args, **kwargs)

        monkeypatch.setattr(criterion, 'forward', note)
    loss(model, with_soft_labels(batch, targets))
    soft_targets = [t for t in seen['loss_cls'] if t is not None]
    assert len(soft_targets) == 5
    for target in (*soft_targets, *seen['loss_proposal']):
        learned = target[target[:, 3] < 1]
        assert sorted(learned.tolist()) == sorted(targets.tolist() * 2)


def test_soft_labels_need_a_loss_that_knows_them(fastinst_config):
    for name in ('loss_cls', 'loss_proposal'):
        config = soft(fastinst_config())
        config.panoptic_head[name].type = 'CrossEntropyLoss'
        with pytest.raises(ValueError, match=f'panoptic_head.{name}'):
            MODELS.build(config)


def test_smoothed_labels(fastinst_config, batch):
    config = fastinst_config()
    expected = loss(build(config), batch)
    config.panoptic_head.loss_cls.type = 'mmsemi.SoftCrossEntropyLoss'
    config.panoptic_head.loss_cls.smoothing = dict(
        type='mmsemi.SimilarityLabelSmoothing', num_classes=3)
    model = build(config)
    model.panoptic_head.loss_cls.smoothing.set_statistics(
        torch.eye(3), torch.tensor([100, 100, 100]))
    found = loss(model, batch)
    for name, value in expected.items():
        # The matching, and all else that it decides, knows no smoothing.
        assert torch.equal(found[name], value) != name.endswith(
            'loss_cls'), name


@pytest.mark.parametrize('soft_labels', [False, True])
def test_teacher_and_student(fastinst_config, batch, soft_labels):
    config = fastinst_config()
    model = MODELS.build(
        dict(
            type='mmsemi.SemiInstanceSegmentor',
            segmentor=soft(config) if soft_labels else config,
            pseudo_label_pipeline=[
                dict(type='mmsemi.FilterByScore', score_thr=.2)
            ],
            soft_labels=soft_labels))
    torch.manual_seed(0)
    model.init_weights()
    model.train()
    inputs, samples = batch
    assert model.predicts_masks
    labels = model.label_unlabeled(inputs['unsup_teacher'],
                                   samples['unsup_teacher'])
    for label in labels:
        assert label.soft_labels.shape == (len(label), 4)
        assert label.masks.shape == (len(label), 64, 64)
    losses = model.loss(inputs, samples)
    names = [n for n in losses if n.startswith('unsup_') and 'loss' in n]
    assert any(n.endswith('guided0.loss_mask') for n in names)
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)


# Text ----------------------------------------------------------------------


def semantic(config, **branch):
    config.panoptic_head.semantic_branch = dict(
        text_embeddings=dict(classes=CLASSES, model='char-ngrams'), **branch)
    return config


@pytest.mark.parametrize('mode', ['similarity', 'feature', 'concat'])
def test_a_closed_gate_changes_nothing(model, fastinst_config, batch, mode):
    ours = build(semantic(fastinst_config(), mode=mode, gate=0.))
    missing, unexpected = ours.load_state_dict(
        model.state_dict(), strict=False)
    assert not unexpected and missing and all(
        'semantic_branch' in key for key in missing)
    ours.train()
    found, expected = loss(ours, batch), loss(model.train(), batch)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    extra = [name for name in found if name not in expected]
    # Every set of predictions also learns from the names alone.
    assert extra == [
        f'{p}loss_cls_semantic' for p in ('', 'd0.', 'd1.', 'guided0.',
                                          'guided1.')
    ]
    assert all(torch.isfinite(found[name]) for name in extra)


def test_text_changes_the_prediction(model, fastinst_config, batch):
    ours = build(semantic(fastinst_config(), aux_weight=0.))
    ours.load_state_dict(model.state_dict(), strict=False)
    found, expected = loss(ours, batch), loss(model, batch)
    assert list(found) == list(expected)
    assert found['loss_cls'] != expected['loss_cls']
    assert found['loss_proposal'] == expected['loss_proposal']
    model.parse_losses(found)[0].backward()
    branch = ours.panoptic_head.semantic_branch
    assert branch.gate.grad is not None
    assert branch.projector[0].weight.grad.any()


def test_text_with_soft_labels(fastinst_config, batch):
    model = build(semantic(soft(fastinst_config())))
    model.train()
    one_hot = with_soft_labels(batch, torch.eye(4)[[0, 2]])
    expected = loss(model, batch)
    for name, value in loss(model, one_hot).items():
        torch.testing.assert_close(value, expected[name])


# Configs -------------------------------------------------------------------


@pytest.mark.parametrize('name, layers, trained', [
    ('r50_d1', 1, 29658035),
    ('r50_d3', 3, 34176597),
    ('r101_d1', 1, 48597939),
    ('r101_d3', 3, 53116501),
])
def test_number_of_parameters(name, layers, trained):
    config = Config.fromfile(BASES / f'fastinst_{name}.py').model
    with torch.device('meta'):
        model = MODELS.build(config)
    assert len(model.panoptic_head.decoder_layers) == layers
    assert sum(p.numel() for p in model.parameters()
               if p.requires_grad) == trained
    assert model.test_cfg.max_per_image == 100


@pytest.mark.parametrize('layers', [1, 3])
def test_deformable_backbone(layers):
    config = Config.fromfile(BASES / f'fastinst_r50-d-dcn_d{layers}.py').model
    with torch.device('meta'):
        backbone = MODELS.build(config.backbone)
    assert config.panoptic_head.transformer_decoder.num_layers == layers
    deformable = {
        name.split('.')[0]
        for name, _ in backbone.named_parameters() if 'conv_offset' in name
    }
    assert deformable == {'layer3', 'layer4'}
    assert backbone.layer3[1].conv2.conv_offset.out_channels == 18
    assert backbone.stem[0].out_channels == 32
    assert type(backbone.layer2[0].downsample[0]).__name__ == 'AvgPool2d'


def test_heads_that_disagree(fastinst_config):
    config = fastinst_config()
    config.panoptic_fusion_head.num_things_classes = 4
    with pytest.raises(ValueError, match='panoptic_head.num_things_classes=3'):
        MODELS.build(config)


def test_no_compiled_op_is_called(model, batch, monkeypatch):
    ops = sys.modules['mmcv._ext']

    def refuse(*args, **kwargs):
        pytest.fail('called a compiled op')

    for name in dir(ops):
        if not name.startswith('__'):
            monkeypatch.setattr(ops, name, refuse)
    inputs, samples = batch
    model.parse_losses(loss(model, batch))[0].backward()
    assert model.eval().predict(inputs['sup'], samples['sup'])
