# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Official FastInst weights; the layout is in ``official_fastinst.py``."""
import importlib.util
import runpy
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/model_converters/fastinst_to_mmsemi.py'
BASES = ROOT / 'configs/_base_/models'
# Small enough to write to disk; the backbone keeps its 50 layers.
WIDTH = 32
SMALL = {
    'backbone.base_channels': 8,
    'backbone.stem_channels': 8,
    'panoptic_head.in_channels': [64, 128, 256],
    'panoptic_head.feat_channels': WIDTH,
    'panoptic_head.out_channels': WIDTH,
    'panoptic_head.num_queries': 9,
    'panoptic_head.transformer_decoder.num_layers': 1,
    **{
        f'panoptic_head.transformer_decoder.layer_cfg.{part}.embed_dims': WIDTH
        for part in ('self_attn_cfg', 'cross_attn_cfg', 'ffn_cfg')
    }
}
OPTIONS = [
    '--cfg-options',
    *(f'model.{key}={value}'.replace(' ', '')
      for key, value in SMALL.items())
]


def load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def official():
    return load_module(ROOT / 'tests/test_models/official_fastinst.py')


@pytest.fixture(scope='module')
def tool():
    return load_module(TOOL)


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


def meta_weights(shapes):
    return {
        key: torch.empty(shape, device='meta')
        for key, shape in shapes.items()
    }


def expected_weights(name):
    init_default_scope('mmdet')
    with torch.device('meta'):
        return MODELS.build(
            Config.fromfile(BASES / f'fastinst_{name}.py').model).state_dict()


@pytest.mark.parametrize('name, num_layers, depth, keys', [
    ('r50_d1', 1, 50, 364),
    ('r50_d3', 3, 50, 456),
    ('r101_d3', 3, 101, None),
])
def test_published_layouts(tool, official, name, num_layers, depth, keys):
    shapes = official.official_shapes(
        num_layers, backbone=official.resnet_shapes(depth))
    assert keys is None or len(shapes) == keys
    expected = expected_weights(name)
    converted = tool.convert_weights(meta_weights(shapes), expected)
    assert list(converted) == list(expected)
    # The file has no counters, and the loss's weights have no place.
    names = {tool.convert_key(key) for key in shapes} - {None}
    assert len(names) == len(shapes) - 2
    assert {key.split('.')[-1]
            for key in set(expected) - names} == {'num_batches_tracked'}


def test_deformable_layout(tool, official):
    expected = expected_weights('r50-d-dcn_d3')
    shapes = official.official_shapes(
        3, backbone=official.resnet_d_shapes(deformable=True))
    converted = tool.convert_weights(meta_weights(shapes), expected)
    assert list(converted) == list(expected)
    assert len(converted) == len(shapes) - 2
    # timm's own, from which training starts.
    shapes = {
        key[len('backbone.'):]: shape
        for key, shape in official.resnet_d_shapes(deformable=False).items()
    }
    shapes.update({'fc.weight': (1000, 2048), 'fc.bias': (1000, )})
    converted = tool.convert_backbone(meta_weights(shapes), expected)
    assert set(converted) == {k for k in expected if k.startswith('backbone')}


@pytest.mark.parametrize('key, ours', [
    ('sem_seg_head.pixel_decoder.adapter_3.norm.bias',
     'panoptic_head.pixel_decoder.lateral_convs.2.gn.bias'),
    ('sem_seg_head.predictor.transformer_mask_ffn_layers.2.linear2.weight',
     'panoptic_head.decoder_layers.2.pixel_ffn.layers.1.weight'),
    ('sem_seg_head.predictor.transformer_query_self_attention_layers.0.'
     'self_attn.in_proj_bias',
     'panoptic_head.decoder_layers.0.self_attn.attn.in_proj_bias'),
    ('sem_seg_head.predictor.transformer_mask_cross_attention_layers.1.norm.'
     'weight', 'panoptic_head.decoder_layers.1.pixel_norms.0.weight'),
    ('backbone.stem.conv1.norm.running_var', 'backbone.bn1.running_var'),
    ('backbone.res4.5.conv3.norm.weight', 'backbone.layer3.5.bn3.weight'),
    ('backbone.res2.0.shortcut.norm.bias',
     'backbone.layer1.0.downsample.1.bias'),
    ('backbone.bn1.weight', 'backbone.stem.7.weight'),
    ('backbone.layer4.1.conv2_offset.bias',
     'backbone.layer4.1.conv2.conv_offset.bias'),
    ('backbone.fc.weight', None),
    ('panoptic_head.meta_pos_embed', None),
    ('criterion.empty_weight', None),
])
def test_names(tool, key, ours):
    assert tool.convert_key(key) == ours


@pytest.fixture
def small(official):
    """Weights of a small checkpoint, drawn at random."""
    torch.manual_seed(0)
    shapes = official.official_shapes(
        1,
        backbone=official.resnet_shapes(width=8),
        in_channels=(64, 128, 256),
        width=WIDTH,
        side=3)
    return {key: torch.rand(shape) for key, shape in shapes.items()}


def test_a_checkpoint_becomes_a_model(convert, small, tmp_path):
    torch.save(
        dict(model=OrderedDict(small), iteration=368749, optimizer={}),
        tmp_path / 'official.pth')
    status, said = convert(BASES / 'fastinst_r50_d3.py', 'official.pth',
                           'new/ours.pth', *OPTIONS)
    assert status == 0, said
    assert f'from {len(small)} of official.pth' in said
    loaded = torch.load(tmp_path / 'new/ours.pth', weights_only=True)
    assert loaded['meta'] == dict(converted_from='official.pth')
    config = Config.fromfile(BASES / 'fastinst_r50_d3.py')
    config.merge_from_dict(
        {f'model.{key}': value
         for key, value in SMALL.items()})
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    model.load_state_dict(loaded['state_dict'], strict=True)
    head, d = model.panoptic_head, 'sem_seg_head.predictor.'
    assert torch.equal(head.meta_pos_embed, small[f'{d}meta_pos_embed'])
    assert torch.equal(model.backbone.bn1.running_mean,
                       small['backbone.stem.conv1.norm.running_mean'])


def test_timms_backbone_is_what_training_starts_from(convert, official,
                                                     tmp_path):
    weights = {
        key[len('backbone.'):]: torch.rand(shape)
        for key, shape in official.resnet_d_shapes(False, width=8).items()
    }
    weights['fc.bias'] = torch.rand(1000)
    torch.save(weights, tmp_path / 'timm.pth')
    status, said = convert(BASES / 'fastinst_r50-d-dcn_d1.py', 'timm.pth',
                           'ours.pth', '--backbone-only', *OPTIONS)
    assert status == 0, said
    config = Config.fromfile(BASES / 'fastinst_r50-d-dcn_d1.py').model.backbone
    config.update(base_channels=8, stem_channels=8)
    config.init_cfg.checkpoint = str(tmp_path / 'ours.pth')
    init_default_scope('mmdet')
    backbone = MODELS.build(config)
    backbone.init_weights()
    for name, ours in (('conv1.6.weight', backbone.stem[6].weight),
                       ('layer4.2.conv2.weight',
                        backbone.layer4[2].conv2.weight)):
        assert torch.equal(weights[name], ours)
    # Deformable convolutions start as plain ones.
    assert not backbone.layer3[0].conv2.conv_offset.weight.any()


@pytest.mark.parametrize('change, message', [
    (lambda w: w.pop('sem_seg_head.predictor.meta_pos_embed'),
     '1 weights of the model are not in the file: '
     'panoptic_head.meta_pos_embed'),
    (lambda w: w.update({'sem_seg_head.predictor.new.weight': torch.ones(1)}),
     '1 weights of the file are not in the model: '
     'sem_seg_head.predictor.new.weight'),
    (lambda w: w.update(
        {'backbone.stem.conv1.weight': torch.ones(8, 3, 3, 3)}),
     r'backbone.conv1.weight is (8, 3, 3, 3), in the model (8, 3, 7, 7)'),
])
def test_every_weight_counts(convert, small, tmp_path, change, message):
    change(small)
    torch.save(small, tmp_path / 'official.pth')
    status, said = convert(BASES / 'fastinst_r50_d1.py', 'official.pth',
                           'ours.pth', *OPTIONS)
    assert status == 2 and message in said
    assert not (tmp_path / 'ours.pth').exists()


def test_another_depth(tool, official):
    weights = meta_weights(official.official_shapes(1))
    with pytest.raises(ValueError, match=r'92 weights of the model.*decoder'):
        tool.convert_weights(weights, expected_weights('r50_d3'))
    with pytest.raises(ValueError, match='number of classes'):
        tool.convert_weights(
            meta_weights(official.official_shapes(3, num_classes=20)),
            expected_weights('r50_d3'))


@pytest.mark.parametrize('content, message', [
    (None, 'There is no file'),
    (dict(model=dict(a=torch.ones(1)), trainer=Path()), 'weights_only=False'),
    (b'not a checkpoint', 'is damaged or holds more than weights'),
    (dict(model={}), 'holds no weights'),
    ([torch.ones(1)], 'holds no weights'),
    (dict(model=dict(a=1)), 'holds no weights'),
])
def test_other_files(convert, tmp_path, content, message):
    path = tmp_path / 'official.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    status, said = convert(BASES / 'fastinst_r50_d3.py', path, 'ours.pth')
    assert status == 2 and message in said
    assert not (tmp_path / 'ours.pth').exists()
