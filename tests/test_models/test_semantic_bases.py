# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Every base of a semantic segmenter trains and predicts."""
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmsemi.models.dense_forward import check_dense_segmentor, dense_logits

BASES = Path(__file__).resolve().parents[2] / 'configs/_base_/models'
NAMES = sorted(
    path.stem for path in BASES.glob('*.py')
    if 'EncoderDecoder' in Config.fromfile(path).model.type)
#: Stages shortened, so that a test takes a second.
SMALL = {
    'deeplabv3plus_r101-d16': dict(backbone=dict(depth=18)),
    'pspnet_r50-d8': dict(decode_head=dict(channels=32)),
    'upernet_r50': dict(decode_head=dict(channels=32)),
    'segformer_mit-b5': dict(backbone=dict(num_layers=[1, 1, 2, 1])),
    'dinov2-b_dpt': dict(backbone=dict(out_indices=(0, 1, 2, 3))),
}


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


def load(name):
    return Config.fromfile(BASES / f'{name}.py').model


def build(config):
    torch.manual_seed(0)
    config.data_preprocessor.size = (64, 64)
    for key in ('init_cfg', 'model_name'):
        config.backbone.pop(key, None)
    model = revert_sync_batchnorm(MODELS.build(config))
    model.init_weights()
    return model


def batch(num_classes):
    torch.manual_seed(1)
    images = [torch.randint(256, (3, 64, 50), dtype=torch.uint8)] * 2
    samples = []
    for _ in images:
        sample = SegDataSample(
            metainfo=dict(
                img_shape=(64, 50), ori_shape=(64, 50), pad_shape=(64, 50)))
        label = torch.randint(num_classes, (1, 64, 50))
        label[:, :8] = 255
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def test_all_bases_are_there():
    assert set(NAMES) >= {
        'deeplabv3plus_r50-d16', 'deeplabv3plus_r101-d16', 'pspnet_r50-d8',
        'upernet_r50', 'segformer_mit-b0', 'segformer_mit-b2',
        'segformer_mit-b5', 'dinov2-s_dpt', 'dinov2-b_dpt', 'dinov3-s_dpt'
    }


@pytest.mark.parametrize('name', NAMES)
def test_every_loss_ignores_what_is_ignored(name):
    model = load(name)
    for head in ('decode_head', 'auxiliary_head'):
        if head in model:
            assert model[head].loss_decode.avg_non_ignore is True


@pytest.mark.parametrize('name', NAMES)
def test_base_trains_and_predicts(name):
    config = load(name)
    changed = Config(dict(model=config))
    changed.merge_from_dict(dict(model=SMALL.get(name, {})))
    if 'r101' in name:
        changed.model.decode_head.update(in_channels=512, c1_in_channels=64)
    model = build(changed.model)
    check_dense_segmentor(model)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3)
    data = model.data_preprocessor(batch(config.decode_head.num_classes), True)
    assert data['inputs'].shape == (2, 3, 64, 64)
    losses = model.train()(**data, mode='loss')
    loss, _ = model.parse_losses(losses)
    assert 2 < loss < 5
    loss.backward()
    missing = [
        name for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert missing == []
    optimizer.step()
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(batch(2))
        result = model(**data, mode='predict')
        logits = dense_logits(model, data['inputs'])
    assert [r.pred_sem_seg.data.shape for r in result] == [(1, 64, 50)] * 2
    assert logits.shape == (2, config.decode_head.num_classes, 64, 50)
    assert torch.equal(result[0].pred_sem_seg.data[0], logits[0].argmax(0))


def test_deeplab_has_output_stride_16_and_a_deep_stem():
    config = load('deeplabv3plus_r50-d16')
    model = build(config)
    assert [conv.kernel_size for conv in model.backbone.stem
            if hasattr(conv, 'kernel_size')] == [(3, 3)] * 3
    shapes = [f.shape for f in model.backbone(torch.rand(1, 3, 64, 64))]
    assert [tuple(s[1:]) for s in shapes] == [(256, 16, 16), (512, 8, 8),
                                              (1024, 4, 4), (2048, 4, 4)]
    assert [block.conv2.dilation for block in model.backbone.layer4
            ] == [(1, 1), (2, 2), (2, 2)]
    assert model.decode_head.dilations == (1, 6, 12, 18)
    assert model.decode_head.align_corners
    assert not model.with_auxiliary_head
    deeper = load('deeplabv3plus_r101-d16')
    assert deeper.backbone.depth == 101
    assert deeper.backbone.init_cfg == dict(
        type='Pretrained', checkpoint='open-mmlab://resnet101_v1c')
    assert deeper.decode_head == config.decode_head


@pytest.mark.parametrize('name, millions', [('dinov2-s_dpt', 24.8),
                                            ('dinov2-b_dpt', 97.5)])
def test_dinov2_is_as_large_as_published(name, millions):
    with torch.device('meta'):
        model = MODELS.build(load(name))
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    # UniMatch V2 counts a residual unit that it never calls.
    channels = model.decode_head.channels
    assert abs(count + 18 * channels**2 / 1e6 - millions) < 0.05
