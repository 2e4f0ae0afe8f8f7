# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Proposals reach the stages, and what these say reaches loss and log."""
import copy

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmsemi.methods import CPS, FixMatch, SemiInstanceSegmentor
from mmsemi.structures.packed_masks import PackedMasks

REFINE = dict(type='mmsemi.RefineByProposals', num_classes=4)
FIGURES = ('pseudo/match_rate', 'pseudo/refined_area_ratio')


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


def add_proposals(samples, views=('unsup_teacher', )):
    """Propose the whole view, everywhere."""
    for view in views:
        for sample in samples[view]:
            masks = torch.ones((1, *sample.img_shape[:2]), dtype=torch.bool)
            sample.set_data(
                dict(mask_proposals=PackedMasks.from_bool(masks)))
    return samples


def one_class(model, c):
    """Let a segmenter see one class everywhere."""
    head = model.decode_head.conv_seg
    head.weight.data.zero_()
    head.bias.data.zero_()
    head.bias.data[c] = 5.


def test_maps_are_refined_and_reported(dense_segmentor_config,
                                       dense_batch_factory):
    torch.manual_seed(0)
    model = FixMatch(
        dense_segmentor_config(),
        pseudo_label_pipeline=[
            REFINE,
            dict(type='mmsemi.PixelWeighting', source='confidence')
        ])
    model.init_weights()
    one_class(model.teacher, 2)
    inputs, samples = dense_batch_factory()
    with pytest.raises(ValueError, match='mmsemi.LoadMaskProposals'):
        model(inputs, samples, mode='loss')
    add_proposals(samples)
    seen = model.label_unlabeled(inputs['unsup_teacher'],
                                 samples['unsup_teacher'])
    for label in seen:
        # Class 2 everywhere, and no other.
        assert label.matched.tolist() == [False, False, True, False]
        assert label.weight.equal(label.valid.float())
    losses = model(inputs, samples, mode='loss')
    assert [losses[name].item() for name in FIGURES] == [1., 1.]
    losses['unsup_loss'].backward()
    # What no proposal fits weighs less.
    for sample in samples['unsup_teacher']:
        sample.set_data(
            dict(
                mask_proposals=PackedMasks.from_bool(
                    torch.zeros((0, *sample.img_shape[:2])).bool())))
    losses = model(inputs, samples, mode='loss')
    assert losses['pseudo/match_rate'] == 0
    label, *_ = model.label_unlabeled(inputs['unsup_teacher'],
                                      samples['unsup_teacher'])
    assert 0 < label.weight[label.valid].max() < 1


def test_partners_are_refined_too(dense_segmentor_config,
                                  dense_batch_factory):
    torch.manual_seed(0)
    model = FixMatch(
        dense_segmentor_config(), pseudo_label_pipeline=[REFINE])
    model.init_weights()
    inputs, samples = dense_batch_factory()
    for view in ('teacher', 'student'):
        inputs[f'unsup_partner_{view}'] = inputs[f'unsup_{view}']
        samples[f'unsup_partner_{view}'] = copy.deepcopy(
            samples[f'unsup_{view}'])
    add_proposals(samples, ('unsup_teacher', 'unsup_partner_teacher'))
    losses = model(inputs, samples, mode='loss')
    assert set(FIGURES) < set(losses)


def test_every_network_of_cps_is_refined(dense_segmentor_config,
                                         dense_batch_factory):
    torch.manual_seed(0)
    model = CPS(dense_segmentor_config(), pseudo_label_pipeline=[REFINE])
    model.init_weights()
    inputs, samples = dense_batch_factory()
    views = [view for view in samples if view.startswith('unsup')]
    losses = model(inputs, add_proposals(samples, views), mode='loss')
    for name in FIGURES:
        assert {f'{name}_0', f'{name}_1'} < set(losses)


def test_instances_of_queries_are_refined(tiny_segmentor_config,
                                          batch_factory):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = SemiInstanceSegmentor(
        tiny_segmentor_config('mask2former'),
        pseudo_label_pipeline=[
            dict(type='mmsemi.RefineByProposals', strategy='iom')
        ])
    inputs, samples = batch_factory()
    height, width = samples['unsup_teacher'][0].img_shape[:2]
    masks = torch.zeros((2, height, width), dtype=torch.bool)
    masks[0, 2:10, 2:10] = masks[1, 20:24, 20:24] = True
    found = InstanceData(
        bboxes=torch.zeros(2, 4),
        labels=torch.tensor([0, 1]),
        scores=torch.tensor([.9, .8]),
        masks=masks)

    def predict(inputs, data_samples, rescale=True):
        for sample in data_samples:
            assert 'mask_proposals' not in sample
            sample.pred_instances = copy.deepcopy(found)
        return data_samples

    model.teacher.predict = predict
    proposal = torch.zeros((1, height, width), dtype=torch.bool)
    proposal[0, 1:10, 2:11] = True
    for sample in samples['unsup_teacher']:
        sample.set_data(
            dict(mask_proposals=PackedMasks.from_bool(proposal)))
    labels = model.label_unlabeled(inputs['unsup_teacher'],
                                   samples['unsup_teacher'])
    for label in labels:
        assert label.masks[0].equal(proposal[0])
        assert label.bboxes.tolist() == [[2, 1, 11, 10], [20, 20, 24, 24]]
        assert label.matched.tolist() == [True, False]
    losses = model(inputs, samples, mode='loss')
    assert losses['pseudo/match_rate'] == .5
    assert losses['pseudo/refined_area_ratio'] == pytest.approx(
        (81 / 64 + 1) / 2)
