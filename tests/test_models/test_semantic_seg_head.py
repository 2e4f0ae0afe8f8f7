# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead
from mmseg.structures import SegDataSample

from mmsemi.models.decode_heads import semantic_head_class
from mmsemi.models.dense_forward import check_dense_segmentor
from mmsemi.models.shared_decoding import decode_with_losses, tapped_classifier
from mmsemi.registry import MODELS

CLASSES = ('background', 'crab', 'eel')
BRANCH = dict(
    text_embeddings=dict(model='char-ngrams', classes=CLASSES),
    embed_channels=6)
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
HEADS = dict(
    FCNHead=HEAD,
    PSPHead=dict(HEAD, type='PSPHead', pool_scales=(1, 2)),
    DepthwiseSeparableASPPHead=dict(
        HEAD,
        type='DepthwiseSeparableASPPHead',
        dilations=(1, 2),
        c1_in_channels=0,
        c1_channels=0),
    SegformerHead=dict(HEAD, type='SegformerHead', in_channels=[8],
                       in_index=[0]))
for name in ('PSPHead', 'DepthwiseSeparableASPPHead', 'SegformerHead'):
    for key in ('num_convs', 'concat_input'):
        HEADS[name].pop(key)


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


def build(head=HEAD, seed=0, **branch):
    """Build a head, with a branch if arguments for it are given."""
    torch.manual_seed(seed)
    head = copy.deepcopy(head)
    if branch:
        head.update(
            head_type=head['type'],
            type='mmsemi.SemanticSegHead',
            semantic_branch={
                **copy.deepcopy(BRANCH),
                **branch
            })
    return MODELS.build(head)


def make_maps(number=2):
    torch.manual_seed(4)
    return (torch.randn(number, 8, 6, 5), )


def make_samples(number):
    generator = torch.Generator().manual_seed(3)
    samples = []
    for _ in range(number):
        label = torch.randint(0, 3, (1, 12, 10), generator=generator)
        label[0, 0] = 255
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=label)))
    return samples


def compare(ours, theirs):
    assert set(theirs) <= set(ours)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize('mode', ['similarity', 'feature', 'concat'])
def test_gate_0_is_any_head(name, mode):
    plain = build(HEADS[name])
    head = build(HEADS[name], seed=1, mode=mode, gate=0)
    assert isinstance(head, type(plain))
    result = head.load_state_dict(plain.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(
        key.startswith('conv_seg.branch.') for key in result.missing_keys)
    maps, samples = make_maps(), make_samples(2)
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs = [map_.to(memory_format=layout) for map_ in maps]
        theirs = plain.loss(inputs, samples, None)
        ours = head.loss(inputs, samples, None)
        compare(ours, theirs)
        assert set(ours) - set(theirs) == {
            'loss_ce_semantic', 'acc_seg_semantic'
        }
    head.eval()
    assert torch.equal(head(maps), plain.eval()(maps))


def test_semantic_logits_learn_the_same_alone():
    head = build(gate=.5, aux_weight=.25)
    seen = []
    head.conv_seg.branch.register_forward_hook(
        lambda _, inputs, output: seen.append((*inputs, output)))
    losses = head.loss(make_maps(), make_samples(2), None)
    features, visual, fused = seen[0]
    semantic = ((fused - visual) / .5).movedim(-1, 1)
    expected = FCNHead.loss_by_feat(build(), semantic, make_samples(2))
    torch.testing.assert_close(losses['loss_ce_semantic'],
                               .25 * expected['loss_ce'])
    torch.testing.assert_close(losses['acc_seg_semantic'],
                               expected['acc_seg'])
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_labelled_images_come_first_in_a_shared_pass():
    model = MODELS.build(
        dict(
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
            decode_head=dict(
                HEAD,
                type='mmsemi.SemanticSegHead',
                head_type='FCNHead',
                norm_cfg=None,
                semantic_branch=dict(BRANCH))))
    check_dense_segmentor(model)
    samples = make_samples(2)
    with tapped_classifier(model) as noted:
        _, shared = decode_with_losses(model, make_maps(5), samples)
    assert noted[0].shape == (5, 8, 6, 5)
    alone = model.decode_head.loss([m[:2] for m in make_maps(5)], samples,
                                   None)
    assert {f'decode.{key}' for key in alone} == set(shared)
    for key, value in alone.items():
        torch.testing.assert_close(shared[f'decode.{key}'], value)


def test_no_auxiliary_loss_when_switched_off():
    head = build(aux_weight=0)
    losses = head.loss(make_maps(), make_samples(2), None)
    assert set(losses) == {'loss_ce', 'acc_seg'}


def test_initialisation_does_not_reach_the_branch():
    head = build(gate=.4)
    before = head.conv_seg.branch.text_vectors.clone()
    head.init_weights()
    branch = head.conv_seg.branch
    assert branch.gate.item() == pytest.approx(.4)
    assert torch.equal(branch.text_vectors, before)
    assert head.conv_seg.weight.std() < .02 < branch.visual.weight.std()


def test_class_of_a_head_is_made_once():
    assert semantic_head_class(FCNHead) is semantic_head_class(FCNHead)
    head = copy.deepcopy(build(gate=1.))
    assert type(head).__name__ == 'SemanticFCNHead'
    assert head.num_classes == 3


@pytest.mark.parametrize('head, branch, words', [
    (dict(type='NoHead'), {}, 'head_type='),
    (dict(type='ResNet'), {}, 'head_type='),
    (dict(num_classes=2, out_channels=1, threshold=.5), {}, 'out_channels=1'),
    (dict(num_classes=4), {}, 'num_classes=4'),
    (dict(type='EncHead', num_codes=2), {}, 'aux_weight=0'),
])
def test_heads_that_do_not_fit_are_refused(head, branch, words):
    config = {**HEAD, **head}
    if head.get('type') == 'EncHead':
        config.pop('num_convs')
        config.pop('concat_input')
        config.update(in_channels=[8], in_index=[0])
    with pytest.raises(ValueError, match=words):
        build(config, gate=1., **branch)
