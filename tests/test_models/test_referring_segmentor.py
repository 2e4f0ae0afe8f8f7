# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A referring segmenter in mmengine's three modes."""
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmsemi.datasets.digit_expressions import DIGIT_WORDS
from mmsemi.models.dense_forward import (check_dense_segmentor, dense_logits,
                                         extract_features)
from mmsemi.models.shared_decoding import decode_with_losses, extract_together
from mmsemi.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


def config(**changes):
    found = Config.fromfile(ROOT / 'configs/_base_/models/lavt_digits.py')
    found.merge_from_dict(
        dict(
            model=dict(
                text_encoder=dict(config=dict(num_hidden_layers=1)),
                backbone=dict(patch_size=4, strides=(4, 2, 2, 2),
                              depths=(1, 1, 1, 1), embed_dims=8),
                decode_head=dict(in_channels=[8, 16, 32, 64], channels=8))))
    found.merge_from_dict(dict(model=changes))
    return found.model


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = MODELS.build(config())
    for part in (built.backbone, built.decode_head):
        part.init_weights()
    return built.eval()


def sample(text, truth=None, size=(64, 64), **meta):
    made = SegDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, text=text, **meta))
    if truth is not None:
        made.gt_sem_seg = PixelData(data=truth)
    return made


def truth(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (num, 64, 64), generator=generator)


def test_the_digits_model_is_small_and_knows_all_words():
    full = Config.fromfile(ROOT / 'configs/_base_/models/lavt_digits.py').model
    assert set(full.text_encoder.vocab) >= set(DIGIT_WORDS)
    built = MODELS.build(full)
    assert sum(p.numel() for p in built.parameters()) < 1e6
    check_dense_segmentor(built)
    longest = 'the first red digit from the left'
    assert len(longest.split()) + 2 <= full.text_encoder.max_length


def test_loss_trains_everything(model):
    model.train()
    images = torch.randn(2, 3, 64, 64)
    samples = [sample('the red seven', truth(1)), sample(['two'], truth(1, 1))]
    losses = model(images, samples, mode='loss')
    assert set(losses) == {'decode.loss_ce', 'decode.acc_seg'}
    losses['decode.loss_ce'].backward()
    for name, param in model.named_parameters():
        assert (param.grad is not None) == param.requires_grad, name


def test_it_learns_to_tell_sentences_apart(model):
    """One image, two sentences, two halves."""
    model.train()
    images = torch.randn(1, 3, 64, 64)
    masks = torch.zeros(2, 64, 64, dtype=torch.long)
    masks[0, :, :32] = masks[1, :, 32:] = 1
    samples = [sample(['the red seven', 'the topmost two'], masks)]
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(40):
        loss = model.loss(images, samples)['decode.loss_ce']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.predict(images, samples)[0].pred_sem_seg.data
    assert (found == masks).float().mean() > .9


def test_several_sentences_equal_one_each(model):
    images = torch.randn(2, 3, 64, 64)
    several = [
        sample(['red seven', 'blue two', 'top'], truth(3)),
        sample('left three', truth(1, 1))
    ]
    each = [
        sample(text, gt[None]) for part, texts in zip(several, (
            several[0].text, [several[1].text]))
        for text, gt in zip(texts, part.gt_sem_seg.data)
    ]
    flat = images[[0, 0, 0, 1]]
    torch.testing.assert_close(
        model.loss(images, several)['decode.loss_ce'],
        model.loss(flat, each)['decode.loss_ce'])
    with torch.no_grad():
        joint = model.predict(images, several)
        single = model.predict(flat, each)
        raw = model(images, several)
    assert raw.shape == (4, 2, 16, 16)
    assert [p.pred_sem_seg.data.shape[0] for p in joint] == [3, 1]
    assert [p.seg_logits.data.shape[0] for p in joint] == [6, 2]
    for field in ('pred_sem_seg', 'seg_logits'):
        found = torch.cat([p.get(field).data for p in joint])
        alone = torch.cat([p.get(field).data for p in single])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
    pairs = joint[0].seg_logits.data.unflatten(0, (3, 2))
    assert torch.equal(joint[0].pred_sem_seg.data, pairs.argmax(1))
    assert not torch.equal(pairs[0], pairs[1])


def test_prediction_has_the_original_size(model):
    """Padding is cut, a flip undone, and logits resized as mmseg does."""
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        full = model.predict(images, [sample(['red', 'two'])])[0]
        found = model.predict(images, [
            sample(['red', 'two'],
                   size=(30, 45),
                   padding_size=(0, 16, 0, 24),
                   flip=True,
                   flip_direction='horizontal')
        ])[0]
    logits = full.seg_logits.data[:, :40, :48].flip(2)
    expected = torch.nn.functional.interpolate(
        logits[None], (30, 45), mode='bilinear', align_corners=True)[0]
    torch.testing.assert_close(found.seg_logits.data, expected)
    assert found.pred_sem_seg.data.shape == (2, 30, 45)


def test_preprocessing_and_test_step(model):
    with torch.no_grad():
        result, = model.test_step(
            dict(
                inputs=[torch.randint(0, 256, (3, 64, 64))],
                data_samples=[sample('the red two')]))
    assert result.pred_sem_seg.data.shape == (1, 64, 64)
    assert result.text == 'the red two'


def test_encode_text(model):
    texts = ['red', 'the blue two']
    features, mask = model.encode_text(texts)
    assert features.shape == (2, 12, 48) and mask.sum(1).tolist() == [3, 5]
    for samples in ([sample(texts)], [sample(text) for text in texts],
                    [dict(text=texts)]):
        assert torch.equal(model.encode_text(samples)[0], features)


def test_parts_of_a_pass(model):
    """What methods do with features, logits and losses."""
    images = torch.randn(3, 3, 64, 64)
    samples = [sample(text, truth(1, i))
               for i, text in enumerate(('red', 'top two', 'big'))]
    logits = dense_logits(model, images, samples)
    assert logits.shape == (3, 2, 64, 64)
    predicted = model.predict(images, [s.clone() for s in samples])
    torch.testing.assert_close(logits[1], predicted[1].seg_logits.data)
    together, = extract_together(model, [images[:1], images[1:]],
                                 [samples[:1], samples[1:]])
    apart = extract_together(model, [images[:1], images[1:, :, :, 4:]],
                             [samples[:1], samples[1:]])
    assert len(apart) == 2
    features = extract_features(model, images, samples)
    for a, b in zip(together, features):
        assert torch.equal(a, b)
    _, losses = decode_with_losses(model, features, samples)
    torch.testing.assert_close(losses, model.loss(images, samples))
    with pytest.raises(ValueError, match='2 sentences, but views'):
        dense_logits(model, images[:1], [sample(['a', 'b'])])


def test_mixed_precision(model):
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.train().loss(
            torch.randn(2, 3, 64, 64), [sample('red', truth(1))] * 2)
        losses['decode.loss_ce'].backward()
    assert losses['decode.loss_ce'].dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters()
               if p.requires_grad)


@pytest.mark.parametrize('text, error, message', [
    (None, ValueError, r"no sentence \('text'=None"),
    ([], ValueError, r"no sentence \('text'=\[\]"),
    (7, TypeError, "'text' of a data sample is 7"),
    (['a', None], TypeError, "'text' of a data sample is"),
])
@pytest.mark.parametrize('mode', ['loss', 'predict', 'tensor'])
def test_missing_sentences(model, mode, text, error, message):
    with pytest.raises(error, match=message):
        model(torch.randn(1, 3, 64, 64), [sample(text, truth(1))], mode=mode)


def test_other_wrong_input(model):
    images = torch.randn(1, 3, 64, 64)
    for mode in ('predict', 'tensor'):
        with pytest.raises(ValueError, match="data samples with 'text'"):
            model(images, None, mode=mode)
    with pytest.raises(ValueError, match='meta_keys'):
        model.loss(images, [SegDataSample(gt_sem_seg=PixelData())])
    with pytest.raises(ValueError, match='2 sentences and gt_sem_seg of 1'):
        model.loss(images, [sample(['a', 'b'], truth(1))])
    with pytest.raises(ValueError, match='no lists of sentences'):
        model.extract_feat(images)
    # Blank sentences are in the data, and pass.
    assert model.predict(images, [sample('')])[0].pred_sem_seg is not None


@pytest.mark.parametrize('head', [
    dict(type='mmseg.FCNHead', in_channels=64, in_index=3, num_convs=1,
         concat_input=False),
    dict(type='mmseg.UPerHead', in_channels=[8, 16, 32, 64],
         in_index=[0, 1, 2, 3]),
    dict(type='mmseg.SegformerHead', in_channels=[8, 16, 32, 64],
         in_index=[0, 1, 2, 3]),
])
def test_heads_of_mmseg(head):
    head.update(
        _delete_=True, channels=8, num_classes=2, out_channels=2,
        norm_cfg=dict(type='BN'))
    auxiliary = dict(
        type='mmseg.FCNHead', in_channels=32, in_index=2, channels=8,
        num_convs=1, concat_input=False, num_classes=2, out_channels=2)
    model = MODELS.build(config(decode_head=head, auxiliary_head=auxiliary))
    check_dense_segmentor(model)
    samples = [sample('red', truth(1)), sample(['two', 'top'], truth(2))]
    losses = model(torch.randn(2, 3, 64, 64), samples, mode='loss')
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(losses)
    with torch.no_grad():
        found = model.eval().predict(torch.randn(2, 3, 64, 64), samples)
    assert found[1].pred_sem_seg.data.shape == (2, 64, 64)


@pytest.mark.parametrize('changes, message', [
    (dict(test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(16, 16))),
     "test_cfg.mode='slide'; allowed with"),
    (dict(decode_head=dict(num_classes=3)), 'decode_head.out_channels=3'),
    (dict(backbone=dict(text_channels=32)), 'text_channels=32; set it to 48'),
    (dict(backbone=dict(_delete_=True, type='mmseg.ResNet', depth=18)),
     'type ResNet does not take images, words'),
])
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(config(**changes))
