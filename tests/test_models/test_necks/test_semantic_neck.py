# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict

from mmsemi.methods import load_segmentor_config
from mmsemi.models.necks import SemanticNeck

TEXTS = dict(model='char-ngrams', classes=('crab', 'eel', 'rov'))
FPN = dict(
    type='mmdet.FPN', in_channels=[4, 8], out_channels=6, num_outs=3)


class Doubling(BaseModule):
    """A neck that says nothing of its channels."""

    def forward(self, inputs):
        return tuple(2 * x for x in inputs)


def make_neck(neck=FPN, **options):
    torch.manual_seed(0)
    options = {**dict(text_embeddings=TEXTS, num_classes=3), **options}
    return SemanticNeck(copy.deepcopy(neck), **options)


def make_maps():
    torch.manual_seed(3)
    return torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)


@pytest.mark.parametrize('layout',
                         [torch.contiguous_format, torch.channels_last])
def test_gate_0_is_the_neck(layout):
    neck = make_neck(gate=0)
    maps = [map_.to(memory_format=layout) for map_ in make_maps()]
    for ours, theirs in zip(neck(maps), neck.wrapped(maps), strict=True):
        assert torch.equal(ours, theirs)
        # Where strides differ, the layers behind round differently.
        assert ours.stride() == theirs.stride()


def test_pixels_attend_to_texts():
    neck = make_neck(gate=.5)
    branch, = neck.branches
    maps = make_maps()
    texts = branch.projector(branch.text_vectors)
    for ours, theirs in zip(neck(maps), neck.wrapped(maps), strict=True):
        pixel = theirs[1, :, 0, 1]
        scores = branch.key(texts) @ branch.query(pixel) / 6**.5
        expected = pixel + .5 * scores.softmax(0) @ texts
        torch.testing.assert_close(ours[1, :, 0, 1], expected)
    sum(x.sum() for x in neck(maps)).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad.any(), name


@pytest.mark.parametrize('torch_loads', [True, False])
def test_checkpoint_of_the_neck_alone_fits(torch_loads):
    neck, parent = make_neck(), torch.nn.Module()
    parent.neck = neck
    torch.manual_seed(9)
    plain = MODELS.build(FPN)
    state = {f'neck.{key}': value for key, value in plain.state_dict().items()}
    if torch_loads:
        result = parent.load_state_dict(state, strict=False)
        assert result.unexpected_keys == []
        assert {key.split('.')[1] for key in result.missing_keys} == {
            'branches'}
    else:
        load_state_dict(parent, state)
    for key, value in plain.state_dict().items():
        assert torch.equal(neck.wrapped.state_dict()[key], value), key
    # Its own checkpoints keep their names.
    other = make_neck(gate=.9)
    other.load_state_dict(neck.state_dict())
    assert torch.equal(other.branches[0].gate, neck.branches[0].gate)


def test_maps_of_different_channels():
    neck = make_neck(None, channels=[4, 8, 4])
    assert len(neck.branches) == 2
    maps = (*make_maps(), torch.randn(2, 4, 2, 2))
    assert [x.shape for x in neck(maps)] == [x.shape for x in maps]
    with pytest.raises(ValueError, match='gives 2 maps'):
        neck(maps[:2])


def test_channels_must_be_known():
    MODELS.register_module(name='DoublingOfTest', module=Doubling, force=True)
    try:
        with pytest.raises(ValueError, match='Doubling does not say'):
            make_neck(dict(type='DoublingOfTest'))
        neck = make_neck(dict(type='DoublingOfTest'), channels=[4, 8])
        assert [x.shape[1] for x in neck(make_maps())] == [4, 8]
    finally:
        MODELS.module_dict.pop('DoublingOfTest')
    with pytest.raises(ValueError, match='map 1 has 8 channels'):
        make_neck(None, channels=4)(make_maps())


def test_initialisation_keeps_gate_and_texts():
    neck = make_neck(gate=.3)
    before = neck.branches[0].text_vectors.clone()
    neck.init_weights()
    assert neck.branches[0].gate.item() == pytest.approx(.3)
    assert torch.equal(neck.branches[0].text_vectors, before)


def test_detector_without_linear_classifier(tiny_segmentor_config,
                                            batch_factory):
    config = load_segmentor_config(tiny_segmentor_config('solov2'))
    torch.manual_seed(0)
    plain = MODELS.build(copy.deepcopy(config))
    config.neck = dict(
        type='mmsemi.SemanticNeck',
        neck=config.neck,
        text_embeddings=TEXTS,
        num_classes=3,
        gate=0)
    model = MODELS.build(config)
    missing = model.load_state_dict(
        plain.state_dict(), strict=False).missing_keys
    assert all('neck.branches' in key for key in missing)
    inputs, samples = batch_factory()
    losses = [
        each.loss(inputs['sup'], copy.deepcopy(samples['sup']))
        for each in (plain, model)
    ]
    for name, value in losses[0].items():
        assert torch.equal(losses[1][name], value), name
    model.parse_losses(losses[1])[0].backward()
    assert model.neck.branches[0].gate.grad.isfinite()
