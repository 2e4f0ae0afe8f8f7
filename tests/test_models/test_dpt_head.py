# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmsemi.models import DPTHead


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


def make_head(**options):
    torch.manual_seed(0)
    return DPTHead(
        **{
            **dict(
                in_channels=[8] * 4,
                channels=4,
                post_process_channels=[4, 6, 8, 10],
                num_classes=3,
                dropout_ratio=0,
                align_corners=True),
            **options
        })


@pytest.mark.parametrize('sides, expected', [((4, 4), (32, 32)),
                                             ((2, 6), (16, 48))])
def test_logits_have_eight_pixels_a_patch(sides, expected):
    logits = make_head()([torch.rand(2, 8, *sides) for _ in range(4)])
    assert logits.shape == (2, 3, *expected)


def test_odd_sides_round_up():
    maps = [torch.rand(1, 8, 5, 3) for _ in range(4)]
    assert make_head()(maps).shape == (1, 3, 48, 32)


def test_every_map_matters():
    head = make_head()
    maps = [torch.rand(1, 8, 4, 4) for _ in range(4)]
    before = head(tuple(maps))
    for i in range(4):
        changed = [*maps]
        changed[i] = changed[i] + 1
        assert not torch.equal(head(changed), before)


def test_features_do_not_grow():
    """Without norm layers, mmcv's own initialisation multiplies them."""
    head = make_head(in_channels=[64] * 4, channels=64)
    head.init_weights()
    logits = head([torch.randn(1, 64, 4, 4) for _ in range(4)])
    assert logits.std() < 0.1


def test_every_parameter_gets_a_gradient():
    head = make_head()
    head([torch.rand(1, 8, 4, 4) for _ in range(4)]).sum().backward()
    assert not [
        name for name, parameter in head.named_parameters()
        if parameter.grad is None
    ]


def test_last_layer_is_a_linear_classifier():
    head = make_head()
    seen = []
    head.conv_seg.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    logits = head([torch.rand(1, 8, 2, 2) for _ in range(4)])
    feature, = seen
    assert feature.shape == (1, 4, 16, 16) and (feature >= 0).all()
    torch.testing.assert_close(
        logits, torch.einsum('kc,nchw->nkhw', head.conv_seg.weight[..., 0, 0],
                             feature) + head.conv_seg.bias[:, None, None])


def test_norm_layers_are_optional():
    head = make_head()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in head.modules())
    head = make_head(norm_cfg=dict(type='BN'))
    # Two in each residual unit, of which the coarsest map has one, and one
    # before the classifier.
    assert sum(isinstance(m, nn.BatchNorm2d) for m in head.modules()) == 15


def test_it_is_registered_beside_mmsegs():
    config = dict(
        in_channels=[8] * 4,
        channels=4,
        post_process_channels=[4, 6, 8, 10],
        num_classes=3)
    assert type(MODELS.build(dict(config, type='mmsemi.DPTHead'))) is DPTHead


@pytest.mark.parametrize('change', [
    dict(in_channels=[8] * 3),
    dict(in_channels=[8, 8, 8, 4]),
    dict(post_process_channels=[4, 6, 8]),
])
def test_four_equal_maps_are_required(change):
    with pytest.raises(ValueError, match='four maps of the same channels'):
        make_head(**change)
