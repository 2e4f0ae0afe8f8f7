# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""SemiRES: the loss of matched and unmatched pseudo-labels, the method."""
import math

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmsemi.methods.semires import matched_unmatched_loss
from mmsemi.pseudo_labels import pixel_weight
from mmsemi.registry import MODELS
from mmsemi.structures.packed_masks import PackedMasks

LN2 = math.log(2)


def fixture_batch():
    """Return three maps of 25, 16 and 4 pixels of 36 and their weights.

    The middle one is not matched: the teacher said 0.8 on it, 0.2 elsewhere.
    """
    label = torch.zeros((3, 6, 6), dtype=torch.long)
    label[0, :5, :5] = 1
    label[1, 1:5, 1:5] = 1
    label[2, 1:3, 1:3] = 1
    weight = torch.ones(3, 6, 6)
    # w(0.8) = w(0.2) of PWA.
    weight[1] = 1.3 - math.exp(-.09 / .2) / math.sqrt(2 * math.pi * .1)
    return label, weight, torch.tensor([True, False, True])


def test_loss_of_groups_is_that_of_the_released_code():
    label, weight, matched = fixture_batch()
    logits = torch.zeros(3, 2, 6, 6)
    both = matched_unmatched_loss(logits, label, weight, matched)
    assert both.item() == pytest.approx(.5115930, abs=1e-6)
    first = matched_unmatched_loss(logits[:1], label[:1], weight[:1],
                                   matched[:1])
    assert first.item() == pytest.approx(.7201029, abs=1e-6)
    second = matched_unmatched_loss(logits[1:2], label[1:2], weight[1:2],
                                    matched[1:2])
    assert second.item() == pytest.approx(.3435167, abs=1e-6)
    pair = matched_unmatched_loss(logits[::2], label[::2], weight[::2],
                                  matched[::2])
    assert pair.item() == pytest.approx(.6796693, abs=1e-6)


def test_mean_over_images_counts_them_alike():
    label, weight, matched = fixture_batch()
    loss = matched_unmatched_loss(
        torch.zeros(3, 2, 6, 6), label, weight, matched,
        reduction='sample_mean')
    assert loss.item() == pytest.approx((2 * .6796693 + .3435167) / 3,
                                        abs=1e-6)


def test_class_weights_are_of_matched_images_only():
    label, weight, matched = fixture_batch()
    logits = torch.zeros(3, 2, 6, 6)
    plain = matched_unmatched_loss(
        logits, label, torch.ones_like(weight), matched, class_weight=None)
    assert plain.item() == pytest.approx(LN2)
    none = matched_unmatched_loss(logits, label, weight,
                                  torch.zeros(3, dtype=torch.bool))
    ones = (LN2 + .3435167 + LN2) / 3
    assert none.item() == pytest.approx(ones, abs=1e-6)


def test_unknown_pixels_and_padding_are_left_out():
    label = torch.ones((1, 2, 4), dtype=torch.long)
    label[0, 0, 0] = 255
    valid = torch.ones((1, 2, 4), dtype=torch.bool)
    valid[..., 3] = False
    logits = torch.zeros(1, 2, 2, 4)
    logits[0, 0, :, 3] = float('inf')
    loss = matched_unmatched_loss(logits, label, torch.ones(1, 2, 4),
                                  torch.tensor([False]), valid)
    # Five known pixels of six.
    assert loss.item() == pytest.approx(5 / 6 * LN2)


def test_nothing_to_learn_gives_zero_with_a_gradient():
    logits = torch.zeros(2, 2, 3, 3, requires_grad=True)
    label = torch.full((2, 3, 3), 255)
    loss = matched_unmatched_loss(logits, label, torch.zeros(2, 3, 3),
                                  torch.tensor([True, False]))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()
    empty = matched_unmatched_loss(logits[:0], label[:0],
                                   torch.zeros(0, 3, 3),
                                   torch.zeros(0, dtype=torch.bool))
    assert empty.item() == 0


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction='mean'"):
        matched_unmatched_loss(
            torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long(),
            torch.ones(1, 2, 2), torch.tensor([True]), reduction='mean')


SEGMENTOR = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor'),
    backbone=dict(
        type='mmseg.ResNetV1c',
        depth=18,
        stem_channels=4,
        base_channels=4,
        norm_cfg=dict(type='BN', requires_grad=True)),
    decode_head=dict(
        type='mmseg.FCNHead',
        in_channels=32,
        channels=4,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.,
        num_classes=2,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='mmseg.CrossEntropyLoss')))


def build(**settings):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build(
        dict(type='mmsemi.SemiRES', segmentor=SEGMENTOR, **settings))


def views(proposals=()):
    """Return two labelled and two unlabelled images of 32 x 32."""
    generator = torch.Generator().manual_seed(0)
    inputs, samples = {}, {}
    weak = torch.randn((2, 3, 32, 32), generator=generator)
    for view in ('sup', 'unsup_teacher', 'unsup_student'):
        inputs[view] = weak if view != 'sup' else torch.randn(
            (2, 3, 32, 32), generator=generator)
        samples[view] = [
            SegDataSample(
                metainfo=dict(img_shape=(32, 32), ori_shape=(32, 32)))
            for _ in range(2)
        ]
    for sample in samples['sup']:
        sample.gt_sem_seg = PixelData(
            data=torch.randint(0, 2, (1, 32, 32), generator=generator))
    for sample, masks in zip(samples['unsup_teacher'], proposals):
        sample.set_field(
            PackedMasks.from_bool(masks), 'mask_proposals', dtype=PackedMasks)
    return inputs, samples


def test_defaults_are_those_of_the_paper():
    model = build()
    settings = model.teacher_settings
    assert (settings.momentum, settings.warm_up_gamma) == (.004, 0)
    stages = [type(s).__name__ for s in model.pseudo_label_pipeline.stages]
    assert stages == ['RefineByProposals', 'PixelWeighting']
    assert model.sup_weight == 1 and model.unsup_weight(0) == 1
    assert build(teacher=dict(momentum=.0004)).teacher_settings.momentum == \
        .0004


def test_matched_and_unmatched_images_reach_the_loss():
    model = build()
    whole = torch.ones((1, 32, 32), dtype=torch.bool)
    nothing = torch.zeros((0, 32, 32), dtype=torch.bool)
    inputs, samples = views([whole, nothing])
    # Everything is called an object; the first image has a proposal for it.
    logits = torch.zeros(2, 2, 32, 32)
    logits[:, 1] = math.log(4)
    labels = model.pseudo_labels_of(logits, samples['unsup_teacher'],
                                    inputs['unsup_teacher'])
    assert [bool(label.matched) for label in labels] == [True, False]
    assert (labels[0].weight == 1).all()
    torch.testing.assert_close(labels[1].weight,
                               pixel_weight(torch.full((32, 32), .8)))
    loss, factor = model.loss_by_pseudo_labels(inputs, samples, labels)
    assert factor == 1 and loss['loss'] > 0


@pytest.mark.parametrize('joint', [True, False])
def test_a_step_trains_the_student_alone(joint):
    model = build(pseudo_label_pipeline=[], joint_forward=joint).train()
    passes = []
    model.student.backbone.register_forward_pre_hook(
        lambda _, inputs: passes.append(len(inputs[0])))
    inputs, samples = views()
    losses = model.loss(inputs, samples)
    assert passes == ([4] if joint else [2, 2])
    total = sum(value for name, value in losses.items() if 'loss' in name)
    total.backward()
    assert all(p.grad is not None for p in model.student.parameters())
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_sizes_that_differ_pass_one_by_one():
    model = build(pseudo_label_pipeline=[]).train()
    inputs, samples = views()
    inputs['sup'] = torch.randn(2, 3, 64, 64)
    for sample in samples['sup']:
        sample.set_metainfo(dict(img_shape=(64, 64)))
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, 64, 64).long())
    losses = model.loss(inputs, samples)
    assert losses['sup_decode.loss_ce'] > 0 and losses['unsup_loss'] > 0


def test_missing_proposals_and_bad_fields_are_named():
    model = build().train()
    inputs, samples = views()
    with pytest.raises(ValueError, match='LoadMaskProposals'):
        model.loss(inputs, samples)
    with pytest.raises(ValueError, match="reduction='mean'"):
        build(reduction='mean')
    with pytest.raises(ValueError, match='has 2 classes'):
        build(class_weight=(1., 1., 2.))
