# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import torch
from torch import nn

from mmsemi.models.layers import (FastInstDecoderLayer, guided_attn_mask,
                                  predicted_attn_mask)

ATTENTION = dict(embed_dims=8, num_heads=2)


def make_layer() -> FastInstDecoderLayer:
    return FastInstDecoderLayer(
        ATTENTION, ATTENTION, dict(embed_dims=8, feedforward_channels=16))


def test_predicted_masks():
    logits = torch.tensor([[[[-1., 0], [2, -3]], [[-1, -1], [-2, -.5]]]])
    # Zero is no background; who may look nowhere looks everywhere.
    expected = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()
    assert torch.equal(predicted_attn_mask(logits, 1, 1), expected[None])
    # Heads of one image stand together.
    both = predicted_attn_mask(torch.cat([logits, -logits - 1]), 1, 2)
    assert both.shape == (4, 3, 4)
    assert torch.equal(both[0], expected) and torch.equal(both[1], expected)
    assert torch.equal(both[2], both[3]) and not torch.equal(both[2], both[1])
    assert predicted_attn_mask(logits, 0, 1).shape == (1, 2, 4)


def test_guided_masks():
    masks = torch.zeros(2, 8, 8, dtype=torch.long)
    masks[0, 5, 2] = 1
    # Between the rows and columns that are kept: 0, 2 and 5.
    masks[1, 3:5, 3:5] = 1
    found = guided_attn_mask([masks, masks[:0]],
                             [torch.tensor([3, 1]),
                              torch.tensor([]).long()], 5, (3, 3), 2)
    assert found.shape == (4, 5, 9)
    assert torch.equal(found[0], found[1]) and not found[2:].any()
    assert (~found[0, 3]).nonzero()[:, 0].tolist() == [7]
    assert not found[0, [0, 1, 2, 4]].any()


def test_pixels_learn_from_queries_first():
    torch.manual_seed(0)
    layer = make_layer().eval()
    query, pixel = torch.rand(2, 3, 8), torch.rand(2, 6, 8)
    query_pos, pixel_pos = torch.rand(2, 3, 8), torch.rand(1, 6, 8)
    mask = torch.zeros(4, 3, 6, dtype=torch.bool)
    mask[:, 0, 1:] = True
    new_query, new_pixel = layer(query, pixel, query_pos, pixel_pos, mask)

    def attend(module, x, keys, x_pos, keys_pos, mask=None):
        return x + module.attn(
            *(y.transpose(0, 1)
              for y in (x + x_pos, keys + keys_pos, keys)),
            attn_mask=mask)[0].transpose(0, 1)

    x = layer.pixel_norms[0](
        attend(layer.pixel_cross_attn, pixel, query, pixel_pos, query_pos))
    feed = layer.pixel_ffn.layers
    x = layer.pixel_norms[1](x + feed[1](feed[0][0](x).relu()))
    torch.testing.assert_close(new_pixel, x)
    q = layer.norms[0](
        attend(layer.cross_attn, query, x, query_pos, pixel_pos, mask))
    q = layer.norms[1](attend(layer.self_attn, q, q, query_pos, query_pos))
    feed = layer.ffn.layers
    q = layer.norms[2](q + feed[1](feed[0][0](q).relu()))
    torch.testing.assert_close(new_query, q)


def test_blocked_pixels_do_not_matter():
    torch.manual_seed(0)
    layer = make_layer().eval()
    query, query_pos = torch.rand(1, 2, 8), torch.rand(1, 2, 8)
    pixel, pixel_pos = torch.rand(1, 4, 8), torch.rand(1, 4, 8)
    mask = torch.zeros(2, 2, 4, dtype=torch.bool)
    mask[:, :, 3] = True
    before, _ = layer(query, pixel, query_pos, pixel_pos, mask)
    pixel[:, 3] += 1
    after, _ = layer(query, pixel, query_pos, pixel_pos, mask)
    torch.testing.assert_close(after, before)


def test_initial_weights_and_untouched_settings():
    settings = dict(ATTENTION)
    layer = FastInstDecoderLayer(settings, settings,
                                 dict(embed_dims=8, feedforward_channels=16))
    assert settings == ATTENTION
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 9.)
    layer.init_weights()
    for name, parameter in layer.named_parameters():
        if parameter.dim() > 1:
            bound = (6 / sum(parameter.shape))**.5
            assert 0 < parameter.abs().max() <= bound, name
