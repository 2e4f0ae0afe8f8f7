# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsemi.models.layers import FastInstPixelDecoder
from mmsemi.registry import MODELS


def tiny_decoder(**kwargs) -> FastInstPixelDecoder:
    return MODELS.build(
        dict(
            dict(
                type='mmsemi.FastInstPixelDecoder',
                in_channels=(4, 6, 8),
                feat_channels=8,
                norm_cfg=dict(type='GN', num_groups=4)), **kwargs))


def maps():
    torch.manual_seed(0)
    return [
        torch.randn(2, c, h, w)
        for c, h, w in ((4, 8, 10), (6, 4, 5), (8, 2, 3))
    ]


def test_maps_come_coarsest_first():
    outputs = tiny_decoder()(maps())
    assert [tuple(x.shape) for x in outputs] == [(2, 8, 2, 3), (2, 8, 4, 5),
                                                 (2, 8, 8, 10)]
    assert all((x >= 0).all() for x in outputs)


def test_a_level_gets_what_left_the_last_convolution():
    decoder = tiny_decoder()
    feats = maps()
    coarse, middle, _ = decoder(feats)
    up = F.interpolate(coarse, (4, 5), mode='bilinear', align_corners=False)
    expected = decoder.output_convs[1](decoder.lateral_convs[1](feats[1]) + up)
    torch.testing.assert_close(middle, expected)


def test_pooling_sees_the_whole_map():
    decoder = tiny_decoder(pool_scales=(1, 2))
    # Two scales of four channels, then the input.
    assert [conv.conv.out_channels for conv in decoder.ppm_convs] == [4, 4]
    bottleneck = decoder.ppm_bottleneck.conv
    nn.init.zeros_(bottleneck.weight)
    nn.init.zeros_(bottleneck.bias)
    with torch.no_grad():
        bottleneck.weight[0, 0] = 1
        decoder.ppm_convs[0].conv.weight.zero_()
        decoder.ppm_convs[0].conv.weight[0, 3] = 1
        decoder.ppm_convs[0].conv.bias.zero_()
    x = torch.rand(1, 8, 2, 3)
    pooled = decoder._pool(x)
    torch.testing.assert_close(pooled[0, 0],
                               x[0, 3].mean().expand(2, 3))
    assert not pooled[0, 1:].any()


def test_initial_weights():
    decoder = tiny_decoder()
    decoder.init_weights()
    for module in (*decoder.lateral_convs, *decoder.output_convs):
        weight = module.conv.weight
        # Uniform, of variance 1 / fan-in.
        bound = (3 / weight[0].numel())**.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**.5, rel=.3)
        assert module.conv.bias is None
    for module in (*decoder.ppm_convs, decoder.ppm_bottleneck):
        assert module.conv.weight.abs().max() <= module.conv.in_channels**-.5
        assert module.conv.bias.any()


@pytest.mark.parametrize('settings, message', [
    (dict(in_channels=(8, )), r'pixel_decoder.in_channels=\(8,\)'),
    (dict(pool_scales=(1, 2, 3)), 'pixel_decoder.feat_channels=8'),
    (dict(pool_scales=()), 'pixel_decoder.feat_channels=8'),
])
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_decoder(**settings)


def test_wrong_number_of_maps():
    with pytest.raises(ValueError, match='4 maps.*in_channels names 3'):
        tiny_decoder()([torch.rand(1, 3, 16, 16), *maps()])
