# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""LAVT's backbone: facts of the fusion, of the sizes and of the weights."""
import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine import Config
from mmengine.registry import init_default_scope
from mmseg.models.backbones import SwinTransformer

from mmsemi.models.backbones.lavt_swin import LAVTSwin, PixelWordAttention
from mmsemi.models.backbones.swin_weights import (convert_swin_weights,
                                                  reorder_patch_merging,
                                                  resize_position_table)
from mmsemi.registry import MODELS

BASES = Path(__file__).resolve().parents[2] / 'configs/_base_/models'
SWIN = dict(
    embed_dims=8, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4), window_size=4)


def words(num: int, length: int = 5, valid: int = 3):
    mask = torch.zeros(num, length, dtype=torch.bool)
    mask[:, :valid] = True
    return torch.randn(num, length, 6), mask


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    model = LAVTSwin(text_channels=6, **SWIN)
    model.init_weights()
    return model.eval()


# The fusion ---------------------------------------------------------------


def norm(x):
    """Instance norm over the last axis."""
    return (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize('heads', [1, 2])
def test_fusion_by_its_equations(heads):
    torch.manual_seed(0)
    module = PixelWordAttention(8, 6, heads)
    x, (lang, mask) = torch.randn(2, 12, 8), words(2)

    def apply(layer, value):
        return value @ layer.weight[..., 0].T + layer.bias

    query = norm(apply(module.query, x).mT).mT
    key = apply(module.key, lang) * mask[..., None]
    value = apply(module.value, lang) * mask[..., None]
    parts = []
    for q, k, v in zip(*(t.chunk(heads, -1) for t in (query, key, value))):
        # All channels count in the scale, not those of a head.
        scores = q @ k.mT * 8**-.5 + (mask[:, None].float() - 1) * 1e4
        parts.append(scores.softmax(-1) @ v)
    language = norm(apply(module.language, torch.cat(parts, -1)).mT).mT
    vision = F.gelu(apply(module.vision, x))
    expected = F.gelu(apply(module.project, vision * language))
    torch.testing.assert_close(
        module(x, lang, mask), expected, atol=1e-6, rtol=1e-5)
    assert list(module.state_dict()) == [
        f'{name}.{kind}' for name in ('vision', 'query', 'key', 'value',
                                      'language', 'project')
        for kind in ('weight', 'bias')
    ]


def test_padding_does_not_matter(backbone):
    torch.manual_seed(1)
    images, (lang, mask) = torch.randn(2, 3, 64, 64), words(2)
    expected = backbone(images, lang, mask)
    changed = torch.where(mask[..., None], lang, torch.full_like(lang, 7.))
    for a, b in zip(backbone(images, changed, mask), expected):
        assert torch.equal(a, b)
    # Without padding at all.
    for a, b in zip(backbone(images, lang[:, :3], mask[:, :3]), expected):
        torch.testing.assert_close(a, b)
    # What is no padding does matter.
    other = lang.clone()
    other[:, 1] += 1
    assert not torch.allclose(backbone(images, other, mask)[3], expected[3])


def test_gates_of_zero_leave_swin(backbone):
    torch.manual_seed(1)
    plain = SwinTransformer(**SWIN)
    plain.eval()
    own = backbone.state_dict()
    plain.load_state_dict({key: own[key] for key in plain.state_dict()})
    for gate in backbone.gates:
        gate[2].weight.data.zero_()
    inputs = torch.randn(2, 3, 72, 64)
    seen = []
    for stage in backbone.stages:
        stage.blocks[-1].register_forward_hook(
            lambda _, args, out: seen.append((out, args[1])))
    backbone(inputs, *words(2))
    for i, (expected, (x, size)) in enumerate(zip(plain(inputs), seen)):
        found = getattr(plain, f'norm{i}')(x).mT.unflatten(2, size)
        assert torch.equal(found, expected)


def test_shapes_and_gradients(backbone):
    """Sizes that are no multiples of anything are padded inside."""
    backbone.train()
    outs = backbone(torch.randn(2, 3, 70, 100), *words(2))
    assert [tuple(out.shape) for out in outs] == [(2, 8, 18, 25),
                                                  (2, 16, 9, 13),
                                                  (2, 32, 5, 7),
                                                  (2, 64, 3, 4)]
    sum(out.sum() for out in outs).backward()
    # As DistributedDataParallel wants it.
    for name, param in backbone.named_parameters():
        assert (param.grad is not None) == param.requires_grad, name
    still = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert still == {'gates.3.0.weight', 'gates.3.2.weight'}
    one = LAVTSwin(text_channels=6, out_indices=(1, 3), **SWIN)
    assert len(one(torch.randn(1, 3, 64, 64), *words(1))) == 2


def test_mixed_precision(backbone):
    inputs = torch.randn(1, 3, 64, 64), *words(1)
    expected = backbone(*inputs)
    with torch.autocast('cpu', torch.bfloat16):
        found = backbone(*inputs)
    for a, b in zip(found, expected):
        assert a.isfinite().all() and (a.float() - b).abs().mean() < .05


@pytest.mark.parametrize('train', [True, False])
def test_small_images(backbone, train):
    backbone.train(train)
    backbone(torch.randn(1, 3, 64, 64), *words(1))
    with pytest.raises(ValueError, match='32 x 32 pixels.*from 64 x 64'):
        backbone(torch.randn(1, 3, 32, 32), *words(1))


@pytest.mark.parametrize('lang, mask', [
    ((1, 5, 6), (1, 5)),
    ((2, 5, 7), (2, 5)),
    ((2, 5, 6), (2, 4)),
])
def test_words_that_do_not_fit(backbone, lang, mask):
    with pytest.raises(ValueError, match='do not fit 2 images'):
        backbone(torch.randn(2, 3, 64, 64), torch.randn(lang),
                 torch.ones(mask, dtype=torch.bool))


def test_wrong_settings():
    with pytest.raises(ValueError, match='one number for each of the 4'):
        LAVTSwin(fusion_heads=(1, 1), **SWIN)
    with pytest.raises(ValueError, match='3 for a stage of 8 channels'):
        LAVTSwin(fusion_heads=(3, 1, 1, 1), **SWIN)
    with pytest.raises(ValueError, match='init_cfg'):
        LAVTSwin(init_cfg=dict(type='Normal', std=.1), **SWIN)


# Sizes --------------------------------------------------------------------


@pytest.mark.parametrize('size, params, entries', [
    ('t', 46_058_876, 283),
    ('s', 67_376_780, 451),
    ('b', 118_847_866, 451),
    ('l', 264_902_198, 451),
])
def test_published_sizes(monkeypatch, size, params, entries):
    """Without BERT."""
    init_default_scope('mmseg')
    config = Config.fromfile(BASES / f'lavt_swin-{size}.py').model
    # Swin reads numbers from a tensor while it is built.
    monkeypatch.setattr(torch, 'linspace',
                        functools.partial(torch.linspace, device='cpu'))
    with torch.device('meta'):
        parts = [MODELS.build(config[key])
                 for key in ('backbone', 'decode_head')]
    assert sum(p.numel() for part in parts for p in part.parameters()) == \
        params
    assert sum(len(part.state_dict()) for part in parts) == entries
    # Tensors of the backbone without weight decay.
    if size == 'b':
        names = [name for name, _ in parts[0].named_parameters()]
        still = [n for n in names
                 if 'norm' in n or 'relative_position_bias_table' in n]
        assert (len(still), len(names)) == (136, 389)
        assert not any('norm' in n for n, _ in parts[1].named_parameters())


# Weights of plain Swin ----------------------------------------------------


def test_order_of_patch_merging():
    """Four pixels of two channels, named 10 * row + column."""
    pixels = torch.tensor([[0, 1], [10, 11]]).float()
    patch = torch.stack([pixels, pixels + 100])[None]
    official = torch.cat([
        patch[0, :, 0, 0], patch[0, :, 1, 0], patch[0, :, 0, 1],
        patch[0, :, 1, 1]
    ])
    unfolded = F.unfold(patch, 2, stride=2)[0, :, 0]
    assert torch.equal(reorder_patch_merging(official), unfolded)
    weight = torch.randn(4, 8)
    torch.testing.assert_close(
        reorder_patch_merging(weight) @ unfolded, weight @ official)


def official_names(weights):
    """Name OpenMMLab's weights as the official Swin does."""
    renamed = {}
    for key, value in weights.items():
        for ours, theirs in (('projection', 'proj'), ('stages', 'layers'),
                             ('attn.w_msa', 'attn'),
                             ('ffn.layers.0.0', 'mlp.fc1'),
                             ('ffn.layers.1', 'mlp.fc2')):
            key = key.replace(ours, theirs)
        if '.downsample.' in key:
            # Back: channels first, then the pixels column by column.
            value = value.unflatten(-1, (-1, 4)).mT[..., [0, 2, 1, 3], :]
            value = value.flatten(-2)
        renamed[key] = value
    return renamed


@pytest.mark.parametrize('official', [False, True])
def test_pretrained_swin(tmp_path, official):
    torch.manual_seed(0)
    plain = SwinTransformer(**SWIN)
    weights = plain.state_dict()
    saved = {k: v for k, v in weights.items() if 'index' not in k}
    path = tmp_path / 'swin.pth'
    if official:
        named = official_names(saved)
        named.update({'head.weight': torch.ones(2, 2)})
        back = convert_swin_weights(named)
        assert list(back) == list(saved)
        assert all(torch.equal(back[key], saved[key]) for key in saved)
        torch.save(dict(model=named), path)
    else:
        torch.save(
            dict(state_dict={f'backbone.{k}': v for k, v in saved.items()}),
            path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = LAVTSwin(
        text_channels=6, convert_weights=official, init_cfg=init_cfg, **SWIN)
    before = model.fusions[1].key.weight.clone()
    model.init_weights()
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in weights.items())
    assert torch.equal(model.fusions[1].key.weight, before)
    assert .015 < model.gates[3][0].weight.std() < .025
    wrong = LAVTSwin(
        convert_weights=not official, init_cfg=init_cfg, **SWIN)
    with pytest.raises(ValueError, match='convert_weights says which layout'):
        wrong.init_weights()


def test_another_window(tmp_path):
    plain = SwinTransformer(**SWIN)
    path = tmp_path / 'swin.pth'
    torch.save(plain.state_dict(), path)
    model = LAVTSwin(
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
        **dict(SWIN, window_size=2))
    model.init_weights()
    table = 'stages.1.blocks.1.attn.w_msa.relative_position_bias_table'
    old, new = plain.state_dict()[table], model.state_dict()[table]
    assert old.shape == (49, 2) and new.shape == (9, 2)
    assert torch.equal(new, resize_position_table(old, 9))
    assert model.state_dict()[table.replace('bias_table', 'index')].max() == 8


def test_files_that_are_no_swin(tmp_path):
    path = tmp_path / 'a.pth'
    model = LAVTSwin(
        init_cfg=dict(type='Pretrained', checkpoint=str(path)), **SWIN)
    with pytest.raises(FileNotFoundError, match='init_cfg.checkpoint'):
        model.init_weights()
    for content, message in ((dict(model=dict(a=torch.ones(1))), 'is no Swin'),
                             ([1], 'no weights by name'),
                             (Path(), 'damaged or holds more')):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            model.init_weights()
