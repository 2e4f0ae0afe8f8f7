# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import json

import pytest
import torch
import transformers
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from mmsemi.models import DINOBackbone

SIZES = dict(hidden_size=16, num_attention_heads=2, num_hidden_layers=4)
CONFIGS = dict(
    dinov2=dict(model_type='dinov2', image_size=28, patch_size=14, **SIZES),
    dinov2_with_registers=dict(
        model_type='dinov2_with_registers',
        image_size=28,
        patch_size=14,
        num_register_tokens=2,
        **SIZES),
    dinov3_vit=dict(
        model_type='dinov3_vit',
        intermediate_size=32,
        patch_size=16,
        num_register_tokens=2,
        **SIZES))
PRETRAINED = dict(
    dinov2='Dinov2Model',
    dinov2_with_registers='Dinov2WithRegistersModel',
    dinov3_vit='DINOv3ViTModel')


def make_backbone(name='dinov2', **options):
    torch.manual_seed(0)
    options = dict(config=CONFIGS[name], out_indices=(0, 2), **options)
    return DINOBackbone(**options)


def write_model(name, folder, seed=1):
    """Write a model as it is published: another class, all blocks."""
    torch.manual_seed(seed)
    fields = dict(CONFIGS[name])
    config = transformers.CONFIG_MAPPING[fields.pop('model_type')](**fields)
    model = getattr(transformers, PRETRAINED[name])(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return model


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('training', [True, False])
def test_maps_are_patches_without_other_tokens(name, training):
    backbone = make_backbone(name).train(training)
    patch = backbone.patch_size
    assert patch == CONFIGS[name]['patch_size']
    assert backbone.embed_dims == 16
    maps = backbone(torch.rand(2, 3, 2 * patch, 3 * patch))
    assert [map_.shape for map_ in maps] == [(2, 16, 2, 3)] * 2
    # A map differs from block to block, and nothing in it is random.
    assert not torch.equal(*maps)
    images = torch.rand(1, 3, patch, patch)
    assert torch.equal(backbone(images)[1], backbone(images)[1])


@pytest.mark.parametrize('side, patches', [(5, 1), (20, 1), (21, 2), (35, 3),
                                           (28, 2), (34, 2)])
def test_images_are_resized_to_the_nearest_whole_patches(side, patches):
    maps = make_backbone()(torch.rand(1, 3, side, 28))
    assert maps[0].shape == (1, 16, patches, 2)


def test_resizing_aligns_corners():
    backbone = make_backbone().eval()
    ramp = torch.linspace(0, 1, 27).expand(1, 3, 28, 27)
    fine = torch.linspace(0, 1, 28).expand(1, 3, 28, 28)
    torch.testing.assert_close(backbone(ramp)[1], backbone(fine)[1])


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('with_config', [True, False])
def test_weights_are_those_of_the_folder(name, with_config, tmp_path):
    published = write_model(name, tmp_path)
    backbone = DINOBackbone(
        model_name=str(tmp_path),
        config=CONFIGS[name] if with_config else None,
        out_indices=(1, 3)).eval()
    images = torch.rand(1, 3, 2 * backbone.patch_size, backbone.patch_size)
    assert not torch.allclose(
        backbone(images)[1].flatten(2).mT,
        published(images).last_hidden_state[:, -2:])
    backbone.init_weights()
    output = published(images, output_hidden_states=True)
    torch.testing.assert_close(
        backbone(images)[1].flatten(2).mT, output.last_hidden_state[:, -2:])
    norm = getattr(published, 'norm', None) or published.layernorm
    torch.testing.assert_close(
        backbone(images)[0].flatten(2).mT,
        norm(output.hidden_states[2])[:, -2:])


def test_loading_keeps_to_its_place(tmp_path):
    """Neither a second call nor the parent's initialisation touches it."""
    write_model('dinov2', tmp_path)
    parent = BaseModule(init_cfg=dict(type='Constant', layer='Linear', val=3.))
    parent.backbone = make_backbone(model_name=str(tmp_path))
    parent.head = nn.Linear(2, 2)
    parent.init_weights()
    expected = make_backbone(model_name=str(tmp_path))
    expected.init_weights()
    assert (parent.head.weight == 3).all()
    loaded = parent.backbone.state_dict()
    for key, value in expected.state_dict().items():
        assert torch.equal(loaded[key], value), key
    nn.init.zeros_(parent.backbone.model.layernorm.weight)
    parent.backbone.init_weights()
    assert not parent.backbone.model.layernorm.weight.any()


def test_without_name_the_random_weights_stay():
    backbone = make_backbone()
    before = copy.deepcopy(backbone.state_dict())
    backbone.init_weights()
    assert all(
        torch.equal(before[key], value)
        for key, value in backbone.state_dict().items())


def test_blocks_after_the_last_are_not_built():
    assert len(make_backbone().model.encoder.layer) == 3
    names = make_backbone().state_dict()
    assert not [name for name in names if 'layer.3' in name]


def test_state_dict_holds_everything(tmp_path):
    write_model('dinov2', tmp_path)
    backbone = make_backbone(model_name=str(tmp_path)).eval()
    backbone.init_weights()
    torch.manual_seed(3)
    other = make_backbone().eval()
    other.load_state_dict(backbone.state_dict())
    images = torch.rand(1, 3, 28, 28)
    assert torch.equal(other(images)[1], backbone(images)[1])


def test_a_copy_is_independent():
    backbone = make_backbone().eval()
    twin = copy.deepcopy(backbone)
    images = torch.rand(1, 3, 28, 28)
    before = backbone(images)[0]
    assert torch.equal(twin(images)[0], before)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert not twin(images)[0].any()
    assert torch.equal(backbone(images)[0], before)


@pytest.mark.parametrize('name', CONFIGS)
def test_every_trained_parameter_gets_a_gradient(name):
    backbone = make_backbone(name).train()
    sum(map_.square().sum()
        for map_ in backbone(torch.rand(1, 3, 32, 32))).backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert len(trained) > 30
    assert all(parameter.grad is not None for parameter in trained)


def test_frozen_stays_frozen():
    backbone = make_backbone(frozen=True).train()
    assert backbone.training and not backbone.model.training
    assert not [p for p in backbone.parameters() if p.requires_grad]
    images = torch.rand(1, 3, 28, 28, requires_grad=True)
    assert not backbone(images)[0].requires_grad
    assert not backbone.eval().model.training
    assert not backbone.train().model.training


def test_frozen_loads_its_weights(tmp_path):
    write_model('dinov2', tmp_path)
    frozen = make_backbone(frozen=True, model_name=str(tmp_path)).eval()
    frozen.init_weights()
    free = make_backbone(model_name=str(tmp_path)).eval()
    free.init_weights()
    images = torch.rand(1, 3, 28, 28)
    assert torch.equal(frozen(images)[1], free(images)[1])


def test_it_is_registered():
    backbone = MODELS.build(
        dict(
            type='mmsemi.DINOBackbone',
            config=CONFIGS['dinov2'],
            out_indices=(3, )))
    assert isinstance(backbone, DINOBackbone)


def test_position_noise_of_the_pretraining_is_off(tmp_path):
    assert make_backbone('dinov3_vit').model.config.pos_embed_rescale is None
    write_model('dinov3_vit', tmp_path)
    content = json.loads((tmp_path / 'config.json').read_text())
    content['pos_embed_rescale'] = 2.0
    (tmp_path / 'config.json').write_text(json.dumps(content))
    backbone = DINOBackbone(model_name=str(tmp_path), out_indices=(1, ))
    assert backbone.model.config.pos_embed_rescale is None
    noisy = dict(CONFIGS['dinov3_vit'], pos_embed_rescale=2.0)
    backbone = DINOBackbone(config=noisy, out_indices=(1, ))
    assert backbone.model.config.pos_embed_rescale == 2.0


@pytest.mark.parametrize('out_indices', [(), (0, 4), (-1, 2), (2, 0), (1, 1)])
def test_out_indices_are_checked(out_indices):
    with pytest.raises(ValueError, match='out_indices=.*from 0 to 3'):
        DINOBackbone(config=CONFIGS['dinov2'], out_indices=out_indices)


def test_config_is_checked():
    with pytest.raises(ValueError, match='needs model_name .* or config'):
        DINOBackbone()
    with pytest.raises(ValueError, match="model_type='vit'; allowed are"):
        DINOBackbone(config=dict(model_type='vit'))
    with pytest.raises(ValueError, match=r"fields \['depth'\]"):
        DINOBackbone(config=dict(CONFIGS['dinov2'], depth=3))


def test_unknown_names_are_named(tmp_path):
    message = 'model_name=.* is neither a folder .* nor a model that'
    with pytest.raises(OSError, match=message):
        DINOBackbone(model_name='facebook/dinov2-of-no-size')
    with pytest.raises(OSError, match=message):
        DINOBackbone(model_name=str(tmp_path / 'nothing'))
    backbone = make_backbone(model_name='facebook/dinov2-of-no-size')
    with pytest.raises(OSError, match=message):
        backbone.init_weights()


def test_other_models_are_refused(tmp_path):
    transformers.ViTConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is of type 'vit'; allowed are"):
        DINOBackbone(model_name=str(tmp_path), out_indices=(1, ))


def test_pickles_are_not_read(tmp_path):
    model = write_model('dinov2', tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    torch.save(model.state_dict(), tmp_path / 'pytorch_model.bin')
    backbone = make_backbone(model_name=str(tmp_path))
    with pytest.raises(OSError, match='model.safetensors'):
        backbone.init_weights()


@pytest.mark.parametrize('change', [
    dict(hidden_size=32),
    dict(image_size=42),
    dict(num_hidden_layers=6),
])
def test_weights_of_another_shape_are_refused(change, tmp_path):
    write_model('dinov2', tmp_path)
    config = dict(CONFIGS['dinov2'], **change)
    backbone = DINOBackbone(
        model_name=str(tmp_path),
        config=config,
        out_indices=(config['num_hidden_layers'] - 1, ))
    with pytest.raises(ValueError, match='do not fit backbone.config'):
        backbone.init_weights()


def test_missing_transformers_is_named(monkeypatch):
    monkeypatch.setattr('mmsemi.models.backbones.dino.is_installed',
                        lambda name: False)
    with pytest.raises(ImportError, match='pip install.* transformers'):
        make_backbone()
