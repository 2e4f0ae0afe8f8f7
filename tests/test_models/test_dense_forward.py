# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from mmseg.utils import stack_batch
from torch import nn

from mmsemi.models import dense_forward
from mmsemi.models.dense_forward import (cat_features, check_dense_segmentor,
                                         decode, dense_logits,
                                         loss_from_features, map_features,
                                         num_classes, resize_logits,
                                         split_features)

CLASSES = 4


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


def head_config(**changes):
    return dict(
        dict(
            type='mmseg.FCNHead',
            in_channels=16,
            in_index=1,
            channels=8,
            num_convs=1,
            concat_input=False,
            num_classes=CLASSES,
            dropout_ratio=0.,
            norm_cfg=dict(type='BN'),
            align_corners=False), **changes)


def build(decode_head=None, auxiliary=True, **changes):
    torch.manual_seed(0)
    config = dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(
            type='mmseg.ResNetV1c',
            depth=18,
            base_channels=8,
            stem_channels=8,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(0, 1),
            norm_cfg=dict(type='BN')),
        decode_head=decode_head or head_config(),
        test_cfg=ConfigDict(mode='whole'))
    config.update(changes)
    if auxiliary:
        config['auxiliary_head'] = head_config(in_channels=8, in_index=0)
    model = MODELS.build(config)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == CLASSES:
            nn.init.normal_(module.weight)
    return model


def cascade():
    later = head_config(type='mmseg.OCRHead', ocr_channels=8)
    for key in ('num_convs', 'concat_input'):
        later.pop(key)
    return build([head_config(), later],
                 type='mmseg.CascadeEncoderDecoder',
                 num_stages=2)


def batch(height=20, width=28, pad_to=None):
    """Two images, with ground truth, padded at the right and the bottom."""
    generator = torch.Generator().manual_seed(0)
    size = pad_to or (height, width)
    images = torch.zeros(2, 3, *size)
    images[..., :height, :width] = torch.randn(
        (2, 3, height, width), generator=generator)
    samples = []
    for _ in range(2):
        label = torch.full((1, *size), 255)
        label[:, :height, :width] = torch.randint(
            0, CLASSES, (1, height, width), generator=generator)
        samples.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=label),
                metainfo=dict(
                    img_shape=(height, width),
                    ori_shape=(height, width),
                    pad_shape=size,
                    padding_size=(0, size[1] - width, 0, size[0] - height))))
    return images, samples


@pytest.mark.parametrize('make', [build, cascade])
@pytest.mark.parametrize('training', [True, False])
def test_losses_are_those_of_mmseg(make, training):
    model = make().train(training)
    images, samples = batch(pad_to=(24, 32))
    theirs = copy.deepcopy(model).loss(images, samples)
    ours = loss_from_features(model, model.extract_feat(images), samples)
    assert ours.keys() == theirs.keys()
    assert any('aux' in key for key in ours)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


@pytest.mark.parametrize('make', [build, cascade])
@torch.no_grad()
def test_logits_are_those_of_mmseg(make):
    model = make().eval()
    images, samples = batch()
    theirs = model.predict(images, copy.deepcopy(samples))
    for logits, sample in zip(dense_logits(model, images), theirs):
        assert torch.equal(logits, sample.seg_logits.data)


@torch.no_grad()
def test_padded_batch_keeps_its_size():
    """mmseg resizes to the unpadded size if there is no ground truth."""
    model = build().eval()
    images = [torch.randn(3, 20, 28), torch.randn(3, 24, 32)]
    inputs, samples = stack_batch(
        images, [SegDataSample(metainfo=dict(ori_shape=(20, 28)))] * 2,
        size=(24, 32))
    logits = dense_logits(model, inputs)
    assert logits.shape == (2, CLASSES, 24, 32)
    # What is resized lies on the pixels it was computed from.
    small = model.decode_head(model.extract_feat(inputs))
    expected = nn.functional.interpolate(
        small, (24, 32), mode='bilinear', align_corners=False)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize('align', [True, False])
def test_resized_as_the_head_says(align):
    model = build(head_config(align_corners=align))
    assert dense_forward.align_corners(model) is align
    logits = torch.randn(1, CLASSES, 3, 5)
    resized = resize_logits(model, logits, (7, 9))
    # With aligned corners every third row is one of the given ones.
    assert torch.allclose(resized[..., ::3, ::2], logits) is align
    assert resize_logits(model, logits, (3, 5)) is logits
    assert resize_logits(model, logits, torch.Size((3, 5))) is logits


def test_number_of_classes():
    assert num_classes(build()) == num_classes(cascade()) == CLASSES
    binary = head_config(num_classes=2, out_channels=1, threshold=.3)
    assert num_classes(build(binary)) == 1


def test_what_gives_logits_is_accepted():
    for model in (build(), cascade()):
        check_dense_segmentor(model)


def test_sigmoid_is_refused():
    head = head_config(num_classes=2, out_channels=1, threshold=.3)
    with pytest.raises(ValueError, match='out_channels=1 .*out_channels=2'):
        check_dense_segmentor(build(head))


def test_masks_instead_of_pixels_are_refused():
    class Queries(nn.Module):
        """As mmseg's Mask2FormerHead, without what it needs to be built."""
        out_channels = CLASSES

    model = build()
    model.decode_head = Queries()
    with pytest.raises(ValueError, match='decode_head of type Queries'):
        check_dense_segmentor(model)


@pytest.mark.parametrize('model', [nn.Linear(1, 1), nn.Sequential()])
def test_other_models_are_refused(model):
    with pytest.raises(ValueError, match='segmentor of type .* is no Enc'):
        check_dense_segmentor(model)


def test_head_that_gives_several_answers_in_training():
    head = head_config(
        type='mmseg.EncHead',
        in_channels=(8, 16),
        in_index=(0, 1),
        num_codes=4,
        use_se_loss=True,
        loss_se_decode=dict(type='mmseg.CrossEntropyLoss', use_sigmoid=True))
    for key in ('num_convs', 'concat_input'):
        head.pop(key)
    model = build(head)
    with pytest.raises(TypeError, match='EncHead gives a tuple .* training'):
        decode(model, model.extract_feat(batch()[0]))


def nested(num, offset=0.):
    one = torch.arange(num * 2.).reshape(num, 2) + offset
    return (one, [one + 1, (one + 2, )])


def test_features_are_split_and_joined():
    first, second = split_features(nested(5), 2)
    assert first[0].shape == (2, 2) and second[1][1][0].shape == (3, 2)
    assert type(first) is tuple and type(first[1]) is list
    joined = cat_features(first, second)
    for part, other in ((joined[0], nested(5)[0]), (joined[1][0],
                                                    nested(5)[1][0]),
                        (joined[1][1][0], nested(5)[1][1][0])):
        assert torch.equal(part, other)
    assert torch.equal(
        map_features(nested(2), lambda x: -x)[1][1][0], -nested(2)[1][1][0])
    plain = torch.arange(4.)
    assert torch.equal(cat_features(*split_features(plain, 1)), plain)
