# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import itertools

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.losses import (CrossEntropyLoss,
                                 KnowledgeDistillationKLDivLoss)
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample

from mmsemi.models.label_smoothing import SimilarityLabelSmoothing
from mmsemi.models.losses import SoftCrossEntropyLoss
from mmsemi.models.losses.soft_cross_entropy_loss import target_mass
from mmsemi.registry import MODELS

WEIGHT = [1., 1., 1., .1]
LOGITS = torch.tensor([[2., 1., 0., -1.], [.5, .2, .1, 1.5]])
TARGET = torch.tensor([[.7, .2, .05, .05], [.1, .1, .1, .7]])


def one_hot(label, num=4):
    return F.one_hot(label, num).float().movedim(-1, 1)


def smoothing():
    module = SimilarityLabelSmoothing(3)
    module.set_statistics(
        torch.tensor([[1., .8, 0.], [.8, 1., .6], [0., .6, 1.]]),
        torch.tensor([1000, 100, 1]))
    return module


# Values of soft targets ----------------------------------------------------


def test_per_sample():
    found = SoftCrossEntropyLoss(reduction='none')(
        LOGITS, None, soft_target=TARGET)
    assert found.tolist() == pytest.approx([.890190, 1.004993], abs=1e-6)
    found = SoftCrossEntropyLoss(
        reduction='none', class_weight=WEIGHT)(
            LOGITS, None, soft_target=TARGET)
    assert found.tolist() == pytest.approx([.7354, .6049], abs=1e-4)
    assert found.sum().item() == pytest.approx(1.340328, abs=1e-5)


def test_mean_divides_by_the_weighted_mass():
    loss = SoftCrossEntropyLoss(class_weight=WEIGHT)
    mass = target_mass(TARGET, torch.tensor(WEIGHT))
    assert mass.sum().item() == pytest.approx(1.325)
    found = loss(LOGITS, None, soft_target=TARGET)
    assert found.item() == pytest.approx(1.011569, abs=1e-5)
    given = loss(LOGITS, None, soft_target=TARGET, avg_factor=mass.sum())
    assert torch.equal(found, given)
    # What torch's own mean is.
    assert F.cross_entropy(
        LOGITS, TARGET,
        weight=torch.tensor(WEIGHT)).item() == pytest.approx(
            .6702, abs=1e-4)
    assert found.item() != pytest.approx(.6702, abs=.1)


def test_sample_weights_count_in_the_mean():
    loss = SoftCrossEntropyLoss(class_weight=WEIGHT, loss_weight=2.)
    found = loss(
        LOGITS, None, weight=torch.tensor([3., 0.]), soft_target=TARGET)
    # Three times itself, over three times itself.
    assert found.item() == pytest.approx(2 * .73536 / .955, abs=1e-4)
    assert loss(
        LOGITS,
        None,
        weight=torch.tensor([3., 1.]),
        soft_target=TARGET,
        reduction_override='sum').item() == pytest.approx(
            2 * (3 * .73536 + .60497), abs=1e-4)


def test_gradient_is_the_difference_of_probabilities():
    logits = LOGITS.clone().requires_grad_()
    SoftCrossEntropyLoss(reduction='sum')(
        logits, None, soft_target=TARGET).backward()
    assert logits.grad[0].tolist() == pytest.approx(
        [-.056086, .036883, .037144, -.017941], abs=1e-6)


def test_divergence_is_the_loss_less_the_entropy():
    loss = SoftCrossEntropyLoss(reduction='none')(
        LOGITS, None, soft_target=TARGET)
    entropy = -torch.xlogy(TARGET, TARGET).sum(1)
    assert entropy.tolist() == pytest.approx([.871133, .940448], abs=1e-6)
    divergence = (loss - entropy).tolist()
    assert divergence == pytest.approx([.019056, .064545], abs=1e-6)
    # mmdet's distillation loss is smaller by the number of classes, which
    # is why it does not serve here.
    distilled = KnowledgeDistillationKLDivLoss(
        reduction='none', T=1)(LOGITS, TARGET.log())
    assert distilled.tolist() == pytest.approx([.0048, .0161], abs=1e-4)


# Hard labels ---------------------------------------------------------------


def test_one_hot_reference():
    label = torch.tensor([0, 3])
    avg_factor = torch.tensor(WEIGHT)[label].sum()
    theirs = CrossEntropyLoss(class_weight=WEIGHT)(
        LOGITS, label, avg_factor=avg_factor)
    ours = SoftCrossEntropyLoss(class_weight=WEIGHT)
    hard = ours(LOGITS, label, avg_factor=avg_factor)
    soft = ours(LOGITS, label, soft_target=one_hot(label))
    assert hard.item() == pytest.approx(.457899, abs=1e-6)
    # The sum over what the weights of labels 0 and 3 add up to.
    assert avg_factor.item() == pytest.approx(1.1)
    assert (hard * avg_factor).item() == pytest.approx(.503689, abs=1e-6)
    assert torch.equal(hard, theirs) and torch.equal(hard, soft)
    assert hard.item() == pytest.approx(
        F.cross_entropy(LOGITS, label, weight=torch.tensor(WEIGHT)).item(),
        abs=1e-6)


@pytest.mark.parametrize('shape', [(50, ), (2, 5, 6)])
def test_hard_labels_are_mmdets_bit_by_bit(shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((shape[0], 4, *shape[1:]), generator=generator)
    label = torch.randint(4, shape, generator=generator)
    label.view(-1)[:3] = 255
    weights = torch.rand(shape, generator=generator)
    options = itertools.product(
        (None, WEIGHT), (None, weights), (None, 7., torch.tensor(3.3)),
        ('mean', 'sum', 'none'), (False, True))
    for class_weight, weight, avg_factor, reduction, non_ignore in options:
        settings = dict(
            class_weight=class_weight,
            avg_non_ignore=non_ignore,
            loss_weight=1.7)
        call = dict(
            weight=weight,
            avg_factor=avg_factor,
            reduction_override=reduction,
            ignore_index=255)
        ours = SoftCrossEntropyLoss(**settings)
        if avg_factor is not None and reduction == 'sum':
            with pytest.raises(ValueError, match='avg_factor'):
                ours(logits, label, **call)
            continue
        theirs = CrossEntropyLoss(**settings)(logits, label, **call)
        assert torch.equal(ours(logits, label, **call), theirs)


@pytest.mark.parametrize('shape', [(50, ), (2, 5, 6)])
def test_one_hot_targets_equal_hard_labels_exactly(shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((shape[0], 4, *shape[1:]), generator=generator)
    label = torch.randint(4, shape, generator=generator)
    weight = torch.rand(shape, generator=generator)
    for class_weight in (None, WEIGHT):
        loss = SoftCrossEntropyLoss(class_weight=class_weight)
        hard, soft = logits.clone(), logits.clone()
        pair = []
        for values, target in ((hard, None), (soft, one_hot(label))):
            values.requires_grad_()
            pair.append(
                loss(
                    values, label, weight, avg_factor=9., soft_target=target))
            pair[-1].backward()
        assert torch.equal(*pair)
        torch.testing.assert_close(hard.grad, soft.grad, rtol=1e-6, atol=1e-9)


# Every pixel ---------------------------------------------------------------


def test_ignored_pixels_do_not_count():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((1, 4, 2, 3), generator=generator)
    target = torch.randn((1, 4, 2, 3), generator=generator).softmax(1)
    label = torch.zeros((1, 2, 3), dtype=torch.long)
    label[0, 0, 1] = label[0, 1, 2] = 255
    known = (label != 255)[0]
    # Whatever a target says there.
    target[0, :, ~known] = torch.nan
    loss = SoftCrossEntropyLoss(class_weight=WEIGHT)
    found = loss(logits, label, ignore_index=255, soft_target=target)
    by_pixel = loss(
        logits[0, :, known].t(), None, soft_target=target[0, :, known].t())
    assert found.item() == pytest.approx(by_pixel.item(), abs=1e-6)
    label[:] = 255
    assert loss(logits, label, ignore_index=255, soft_target=target) == 0


def test_mmsegs_heads_take_it():
    init_default_scope('mmseg')
    head = dict(
        type='FCNHead',
        in_channels=4,
        channels=4,
        num_convs=1,
        num_classes=4,
        dropout_ratio=0.,
        norm_cfg=None)
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(4, (1, 8, 8), generator=generator)
    label[0, 0] = 255
    sample = SegDataSample(gt_sem_seg=PixelData(data=label))
    logits = torch.randn((1, 4, 8, 8), generator=generator)
    found = []
    for name in ('mmseg.CrossEntropyLoss', 'mmsemi.SoftCrossEntropyLoss'):
        built = MMSEG_MODELS.build(
            dict(
                **head,
                loss_decode=dict(type=name, use_sigmoid=False)))
        found.append(built.loss_by_feat(logits, [sample]))
    assert set(found[0]) == set(found[1]) >= {'loss_ce'}
    torch.testing.assert_close(
        found[0]['loss_ce'], found[1]['loss_ce'], rtol=1e-6, atol=0)


# Smoothing inside ----------------------------------------------------------


def test_smoothing_expands_labels():
    loss = SoftCrossEntropyLoss(class_weight=WEIGHT, smoothing=smoothing())
    label = torch.tensor([1, 3])
    target = torch.tensor([[.088080, .9, .011920, 0.], [0., 0., 0., 1.]])
    expanded = loss.expand(label, 4)
    torch.testing.assert_close(expanded, target, rtol=0, atol=1e-6)
    found = loss(LOGITS, label)
    assert torch.equal(found, loss(LOGITS, None, soft_target=expanded))
    # A mass on classes of weight one changes no normaliser.
    assert target_mass(expanded, torch.tensor(WEIGHT)).sum() == pytest.approx(
        1.1)
    # What is soft already stays.
    plain = SoftCrossEntropyLoss(class_weight=WEIGHT)
    assert torch.equal(
        loss(LOGITS, label, soft_target=TARGET),
        plain(LOGITS, label, soft_target=TARGET))


def test_smoothing_of_pixels_without_background():
    loss = SoftCrossEntropyLoss(smoothing=smoothing(), ignore_index=255)
    label = torch.tensor([[[0, 255], [2, 1]]])
    logits = torch.zeros(1, 3, 2, 2)
    assert loss.expand(label, 3, 255).shape == logits.shape
    assert loss(logits, label).item() == pytest.approx(
        torch.tensor(3.).log().item())


def test_smoothing_of_another_number_of_classes():
    loss = SoftCrossEntropyLoss(smoothing=smoothing())
    with pytest.raises(ValueError, match='num_classes=3.*5 logits'):
        loss(torch.zeros(2, 5), torch.tensor([0, 1]))


def test_smoothing_without_statistics():
    loss = MODELS.build(
        dict(
            type='mmsemi.SoftCrossEntropyLoss',
            smoothing=dict(
                type='mmsemi.SimilarityLabelSmoothing', num_classes=3)))
    with pytest.raises(RuntimeError, match='ClassPrototypeHook'):
        loss(LOGITS, torch.tensor([0, 1]))


# Edges ---------------------------------------------------------------------


@pytest.mark.parametrize('with_target', [True, False])
def test_no_sample(with_target):
    logits = torch.zeros((0, 4), requires_grad=True)
    label = torch.zeros(0, dtype=torch.long)
    loss = SoftCrossEntropyLoss(class_weight=WEIGHT)(
        logits,
        label,
        avg_factor=1.,
        soft_target=torch.zeros(0, 4) if with_target else None)
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 4)


def test_one_class():
    """Of one class, or of one class and background."""
    loss = SoftCrossEntropyLoss()
    assert loss(
        torch.randn(3, 1), None, soft_target=torch.ones(3, 1)).item() == 0
    assert loss(
        torch.zeros(1, 2), None,
        soft_target=torch.tensor([[.9, .1]])).item() == pytest.approx(.693147)


def test_half_precision():
    loss = SoftCrossEntropyLoss(class_weight=WEIGHT)
    for dtype in (torch.bfloat16, torch.float16):
        found = loss(LOGITS.to(dtype), None, soft_target=TARGET)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(1.011569, abs=2e-2)
    with torch.autocast('cpu', torch.bfloat16):
        found = loss(LOGITS, None, soft_target=TARGET)
    assert found.item() == pytest.approx(1.011569, abs=1e-5)
    assert loss(LOGITS.double(), None,
                soft_target=TARGET).dtype == torch.float64


def test_what_heads_ask_for():
    loss = SoftCrossEntropyLoss(loss_name='loss_soft')
    assert loss.use_sigmoid is loss.use_mask is False
    assert loss.custom_cls_channels is loss.custom_activation is False
    assert loss.loss_name == 'loss_soft'
    assert not list(loss.parameters()) and not loss.state_dict()


@pytest.mark.parametrize('settings, field', [
    (dict(use_sigmoid=True), 'use_sigmoid=True'),
    (dict(use_mask=True), 'use_mask=True'),
    (dict(reduction='average'), 'reduction'),
])
def test_wrong_settings(settings, field):
    with pytest.raises(ValueError, match=field):
        SoftCrossEntropyLoss(**settings)


def test_wrong_shape_of_target():
    with pytest.raises(ValueError, match=r'\(2, 3\).*\(2, 4\)'):
        SoftCrossEntropyLoss()(LOGITS, None, soft_target=TARGET[:, :3])
    with pytest.raises(ValueError, match='reduction_override'):
        SoftCrossEntropyLoss()(
            LOGITS, torch.tensor([0, 1]), reduction_override='average')
