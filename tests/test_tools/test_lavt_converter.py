# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Official LAVT weights, in a file of their layout that is made here."""
import argparse
import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope

from mmsemi.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/model_converters/lavt_to_mmsemi.py'
BASES = ROOT / 'configs/_base_/models'
DIMS, DEPTHS, HEADS = (8, 16, 32, 64), (1, 2, 1, 1), (1, 2, 2, 4)
WINDOW, TEXT = 4, 8
SMALL = {
    'text_encoder.model': None,
    'text_encoder.vocab': ['red', 'two'],
    'text_encoder.num_trained_layers': 1,
    'text_encoder.max_length': 8,
    'text_encoder.config': dict(
        vocab_size=7,
        hidden_size=TEXT,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=10),
    'backbone.text_channels': TEXT,
    'backbone.embed_dims': DIMS[0],
    'backbone.depths': DEPTHS,
    'backbone.num_heads': HEADS,
    'backbone.window_size': WINDOW,
    'backbone.init_cfg': None,
    'decode_head.in_channels': list(DIMS),
    'decode_head.norm_cfg.type': 'BN',
}


def swin_shapes(dims, depths, heads, window):
    """Yield the official names in ``backbone``, and their shapes."""

    def affine(name, *shape):
        yield f'{name}.weight', shape
        yield f'{name}.bias', shape[:1]

    yield from affine('patch_embed.proj', dims[0], 3, 4, 4)
    yield from affine('patch_embed.norm', dims[0])
    for i, (c, depth, head) in enumerate(zip(dims, depths, heads)):
        for j in range(depth):
            block = f'layers.{i}.blocks.{j}'
            yield from affine(f'{block}.norm1', c)
            yield (f'{block}.attn.relative_position_bias_table',
                   ((2 * window - 1)**2, head))
            yield f'{block}.attn.relative_position_index', (window**2, ) * 2
            yield from affine(f'{block}.attn.qkv', 3 * c, c)
            yield from affine(f'{block}.attn.proj', c, c)
            yield from affine(f'{block}.norm2', c)
            yield from affine(f'{block}.mlp.fc1', 4 * c, c)
            yield from affine(f'{block}.mlp.fc2', c, 4 * c)
        for name, width in (('vis_project', c), ('image_lang_att.f_key', None),
                            ('image_lang_att.f_query', c),
                            ('image_lang_att.f_value', None),
                            ('image_lang_att.W', c), ('project_mm', c)):
            yield from affine(f'layers.{i}.fusion.{name}.0', c, width
                              or text_of(dims), 1)
        for k in (0, 2):
            yield f'layers.{i}.res_gate.{k}.weight', (c, c)
        if i < 3:
            yield f'layers.{i}.downsample.reduction.weight', (2 * c, 4 * c)
            yield from affine(f'layers.{i}.downsample.norm', 4 * c)
        yield from affine(f'norm{i}', c)


def text_of(dims):
    return TEXT if dims == DIMS else 768


def head_shapes(dims):
    """Yield the official names in ``classifier``, and their shapes."""
    hidden = coarser = dims[3]
    hidden //= 2
    for number, finer in ((4, dims[2]), (3, dims[1]), (2, dims[0])):
        for layer, width in ((1, coarser + finer), (2, hidden)):
            yield f'conv{layer}_{number}.weight', (hidden, width, 3, 3)
            for kind in ('weight', 'bias', 'running_mean', 'running_var'):
                yield f'bn{layer}_{number}.{kind}', (hidden, )
            yield f'bn{layer}_{number}.num_batches_tracked', ()
        coarser = hidden
    yield 'conv1_1.weight', (2, hidden, 1, 1)
    yield 'conv1_1.bias', (2, )


def official_shapes(dims, depths, heads, window):
    return {
        **{f'backbone.{k}': v
           for k, v in swin_shapes(dims, depths, heads, window)},
        **{f'classifier.{k}': v for k, v in head_shapes(dims)}
    }


def position_index(window):
    """The official one: rows, then columns, of the distance of two places."""
    places = torch.cartesian_prod(*[torch.arange(window)] * 2)
    distance = places[:, None] - places[None] + window - 1
    return distance[..., 0] * (2 * window - 1) + distance[..., 1]


def bert_weights():
    from transformers import BertConfig, BertModel
    return BertModel(
        BertConfig(**SMALL['text_encoder.config']),
        add_pooling_layer=False).state_dict()


@pytest.fixture
def official():
    """Weights of a small LAVT by official name, and those of its BERT."""
    torch.manual_seed(0)
    model = {
        key: torch.tensor(3) if not shape else torch.rand(shape)
        for key, shape in official_shapes(DIMS, DEPTHS, HEADS, WINDOW).items()
    }
    model.update({
        key: position_index(WINDOW)
        for key in model if key.endswith('position_index')
    })
    return model, bert_weights()


def small_model():
    init_default_scope('mmseg')
    config = Config.fromfile(BASES / 'lavt_swin-b.py')
    config.merge_from_dict({f'model.{k}': v for k, v in SMALL.items()})
    return config, MODELS.build(config.model)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / 'small.py'
    small_model()[0].dump(path)
    return path


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location(TOOL.stem, TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def convert(monkeypatch, tmp_path, capsys):
    """Run the tool; returns its exit status and what it said."""

    def run(*args):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
        monkeypatch.chdir(tmp_path)
        status = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as error:
            status = error.code
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def checkpoint(model, bert=None, **more):
    """What the official trainer saves."""
    content = dict(
        model=model,
        optimizer=dict(state={}, param_groups=[dict(lr=5e-5)]),
        lr_scheduler=dict(last_epoch=3),
        epoch=39,
        args=argparse.Namespace(dataset='refcoco', mha=''),
        **more)
    return content if bert is None else dict(content, bert_model=bert)


def test_published_layout(tool):
    """Names and shapes of LAVT-B, without its BERT."""
    dims, depths, heads = (128, 256, 512, 1024), (2, 2, 18, 2), (4, 8, 16, 32)
    shapes = official_shapes(dims, depths, heads, 12)
    assert len(shapes) == 451
    names = {tool.convert_key(key) for key in shapes}
    assert None not in names and len(names) == 451
    counted = [
        torch.Size(shape).numel() for key, shape in shapes.items()
        if not key.endswith(('index', 'running_mean', 'running_var',
                             'num_batches_tracked'))
    ]
    assert sum(counted) == 118_847_866


def test_small_layout_is_that_of_the_model(tool, official):
    model, bert = official
    expected = small_model()[1].state_dict()
    names = [tool.convert_key(key) for key in model]
    names += [tool.convert_key(f'bert_model.{key}') for key in bert]
    assert sorted(names) == sorted(expected)


@pytest.mark.parametrize('key, ours', [
    ('backbone.layers.2.fusion.image_lang_att.W.0.bias',
     'backbone.fusions.2.language.bias'),
    ('backbone.layers.0.res_gate.2.weight', 'backbone.gates.0.2.weight'),
    ('backbone.layers.1.blocks.0.attn.proj.bias',
     'backbone.stages.1.blocks.0.attn.w_msa.proj.bias'),
    ('classifier.bn2_3.running_var', 'decode_head.steps.1.1.bn.running_var'),
    ('classifier.conv1_1.bias', 'decode_head.conv_seg.bias'),
    ('text_encoder.encoder.layer.1.output.dense.bias',
     'text_encoder.bert.encoder.layer.1.output.dense.bias'),
    ('classifier.conv1_5.weight', None),
    ('backbone.layers.0.fusion.other.0.bias', None),
    ('head.weight', None),
])
def test_names(tool, key, ours):
    assert tool.convert_key(key) == ours


@pytest.mark.parametrize('layout', ['two parts', 'one part', 'parallel'])
def test_a_checkpoint_becomes_a_model(convert, official, config_file, tmp_path,
                                      layout):
    model, bert = official
    bert = {**bert, 'embeddings.position_ids': torch.arange(10)[None],
            'pooler.dense.bias': torch.ones(TEXT)}
    if layout == 'one part':
        content = checkpoint({
            **model,
            **{f'text_encoder.{k}': v for k, v in bert.items()}
        })
    elif layout == 'parallel':
        content = checkpoint(
            *({f'module.{k}': v for k, v in part.items()}
              for part in (model, bert)))
    else:
        content = checkpoint(model, bert)
    torch.save(content, tmp_path / 'official.pth')
    status, said = convert(config_file, 'official.pth', 'new/ours.pth')
    assert status == 0, said
    assert 'Warning' not in said
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['ours.pth']
    loaded = torch.load(tmp_path / 'new/ours.pth', weights_only=True)
    assert loaded['meta'] == dict(converted_from='official.pth')
    ours = small_model()[1]
    ours.load_state_dict(loaded['state_dict'], strict=True)
    assert torch.equal(ours.backbone.fusions[3].value.weight,
                       model['backbone.layers.3.fusion.image_lang_att.'
                             'f_value.0.weight'])


def official_merging(model, x, height, width):
    """Patch merging as its source describes it, on (B, H, W, C)."""
    name = 'backbone.layers.0.downsample.'
    x = x.view(len(x), height, width, -1)
    x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2],
                   x[:, 1::2, 1::2]], -1).flatten(1, 2)
    x = torch.nn.functional.layer_norm(
        x, x.shape[-1:], model[f'{name}norm.weight'],
        model[f'{name}norm.bias'])
    return x @ model[f'{name}reduction.weight'].T


def test_patch_merging_computes_the_same(tool, official):
    model, bert = official
    ours = small_model()[1]
    weights = {**model, **{f'bert_model.{k}': v for k, v in bert.items()}}
    ours.load_state_dict(tool.convert_weights(weights, ours.state_dict()))
    x = torch.randn(2, 6 * 4, DIMS[0])
    found, size = ours.backbone.stages[0].downsample(x, (6, 4))
    assert size == (3, 2)
    torch.testing.assert_close(found, official_merging(model, x, 6, 4))
    index = 'backbone.layers.1.blocks.1.attn.relative_position_index'
    assert torch.equal(
        ours.backbone.stages[1].blocks[1].attn.w_msa.relative_position_index,
        model[index])


def test_indices_that_were_averaged(convert, official, config_file, tmp_path):
    model, bert = official
    key = 'backbone.layers.1.blocks.1.attn.relative_position_index'
    model[key] = (model[key] - 1).clamp(min=0)
    torch.save(checkpoint(model, bert), tmp_path / 'semires.pth')
    status, said = convert(config_file, 'semires.pth', 'ours.pth')
    assert status == 0 and '1 position indices of the file' in said
    assert key in said
    loaded = torch.load(tmp_path / 'ours.pth', weights_only=True)
    ours = loaded['state_dict']['backbone.stages.1.blocks.1.attn.w_msa.'
                                'relative_position_index']
    assert torch.equal(ours, position_index(WINDOW))


@pytest.mark.parametrize('change, message', [
    (lambda m, b: m.pop('classifier.conv1_1.bias'),
     '1 weights of the model are not in the file: decode_head.conv_seg.bias'),
    (lambda m, b: m.update({'backbone.new.weight': torch.ones(1)}),
     '1 weights of the file are not in the model: backbone.new.weight'),
    (lambda m, b: m.update({'backbone.norm0.bias': torch.ones(3)}),
     'backbone.norm0.bias is (3,), in the model (8,)'),
    (lambda m, b: b.clear(), 'holds no weights'),
])
def test_every_weight_counts(convert, official, config_file, tmp_path, change,
                             message):
    change(*official)
    torch.save(checkpoint(*official), tmp_path / 'official.pth')
    status, said = convert(config_file, 'official.pth', 'ours.pth')
    assert status == 2 and message in said
    assert not (tmp_path / 'ours.pth').exists()


class Evil:
    """Leaves a trace if it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path('trace'), )


@pytest.mark.parametrize('content, message', [
    (None, 'There is no file'),
    (b'not a checkpoint', 'is damaged or holds more'),
    (dict(epoch=1), 'holds no weights'),
    ([torch.ones(1)], 'holds no weights'),
    (dict(model=dict(a=1)), 'holds no weights'),
    (dict(model=dict(a=torch.ones(1)), args=Evil()),
     'is damaged or holds more'),
])
def test_other_files(convert, tmp_path, content, message):
    path = tmp_path / 'official.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    status, said = convert(BASES / 'lavt_swin-b.py', path, 'ours.pth')
    assert status == 2 and message in said
    assert not (tmp_path / 'ours.pth').exists()
    assert not (tmp_path / 'trace').exists()
