# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmsemi.models.dense_forward import decode, loss_from_features
from mmsemi.models.shared_decoding import (decode_with_losses,
                                           extract_together, tapped_classifier)
from mmsemi.registry import MODELS


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


HEAD = dict(
    type='FCNHead',
    in_channels=8,
    in_index=0,
    channels=8,
    num_convs=1,
    concat_input=False,
    dropout_ratio=0.,
    num_classes=3,
    norm_cfg=dict(type='BN'),
    loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True))


@pytest.fixture
def make():

    def build(cascade=False, auxiliary=False, **changes):
        torch.manual_seed(0)
        head = dict(HEAD, **changes)
        config = dict(
            type='mmseg.EncoderDecoder',
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=8,
                stem_channels=8,
                num_stages=1,
                strides=(1, ),
                dilations=(1, ),
                out_indices=(0, ),
                norm_cfg=dict(type='BN')),
            decode_head=head)
        if auxiliary:
            config['auxiliary_head'] = dict(HEAD)
        if cascade:
            config.update(
                type='mmseg.CascadeEncoderDecoder',
                num_stages=2,
                decode_head=[
                    head,
                    dict(head, type='OCRHead', ocr_channels=8, num_convs=1)
                ])
            for field in ('num_convs', 'concat_input'):
                del config['decode_head'][1][field]
        return MODELS.build(config)

    return build


def samples(num):
    return [
        SegDataSample(
            metainfo=dict(img_shape=(16, 16)),
            gt_sem_seg=PixelData(data=torch.randint(0, 3, (1, 16, 16))))
        for _ in range(num)
    ]


@pytest.mark.parametrize('settings, decoded', [
    (dict(), 1), (dict(auxiliary=True), 1), (dict(cascade=True), 2)])
def test_decode_with_losses(make, settings, decoded):
    model, labeled = make(**settings).eval(), samples(2)
    features = model.extract_feat(torch.randn(3, 3, 16, 16))
    expected = decode(model, features)
    own = loss_from_features(model, [part[:2] for part in features], labeled)
    with tapped_classifier(model) as noted:
        logits, losses = decode_with_losses(model, features, labeled)
    assert torch.equal(logits, expected)
    assert list(losses) == list(own)
    for key, value in losses.items():
        assert torch.allclose(value, own[key]), key
    # The loss of a cascade decodes a second time.
    assert [len(part) for part in noted] == [3, 2][:decoded]
    assert decode_with_losses(model, features, [])[1] == {}


@pytest.mark.parametrize('dropout', [0., .9])
def test_tapped_classifier(make, dropout):
    model = make(dropout_ratio=dropout)
    head = model.decode_head
    features = model.extract_feat(torch.randn(2, 3, 16, 16))
    with tapped_classifier(model) as noted:
        decode(model, features)
    assert len(noted) == 1 and noted[0].shape == (2, 8, 4, 4)
    # Dropout has not been applied.
    assert (noted[0] != 0).float().mean() > .3
    decode(model, features)
    assert len(noted) == 1
    head.dropout = None
    logits = copy.deepcopy(head).conv_seg(noted[0])
    assert logits.shape == (2, 3, 4, 4)


def test_extract_together(make):
    model = make().eval()
    a, b, c = (torch.randn(n, 3, s, 16) for n, s in ((1, 16), (2, 16), (1, 8)))
    together, = extract_together(model, [a, b])
    assert torch.allclose(
        together[0], model.extract_feat(torch.cat([a, b]))[0])
    apart = extract_together(model, [a, c])
    assert [part[0].shape[2] for part in apart] == [4, 2]
