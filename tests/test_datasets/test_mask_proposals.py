# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from mmsemi.datasets import MultiSourceDataset
from mmsemi.datasets.proposal_writer import ProposalWriter
from mmsemi.datasets.transforms import LoadMaskProposals
from mmsemi.models import MultiBranchDataPreprocessor
from mmsemi.structures.packed_masks import PackedMasks

HEIGHT, WIDTH = 24, 32
VIEWS = ['sup', 'unsup_teacher', 'unsup_student']


def make_masks(num=10):
    masks = np.random.default_rng(0).random((num, HEIGHT, WIDTH)) < .5
    masks[2] = False
    masks[2, 3, 4] = True
    return masks


@pytest.fixture
def folder(tmp_path):
    """Path: An image ``img/a.png`` and a ``store`` with ten masks of it."""
    (tmp_path / 'img').mkdir()
    image = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3))
    cv2.imwrite(str(tmp_path / 'img' / 'a.png'), image)
    with ProposalWriter(tmp_path / 'store', {}) as writer:
        writer.add('a.png', make_masks())
    return tmp_path


def load(folder, *transforms, scope='mmdet', **options):
    init_default_scope(scope)
    return Compose([
        dict(type='LoadImageFromFile'), *transforms,
        dict(
            type='mmsemi.LoadMaskProposals',
            store=str(folder / 'store'),
            **options)
    ])(dict(img_path=str(folder / 'img' / 'a.png'), seg_fields=[]))


def bits(results):
    return results['proposals'].to_bool().numpy()


def test_without_geometry_it_is_a_plain_read(folder):
    results = load(folder)
    assert isinstance(results['proposals'], PackedMasks)
    np.testing.assert_array_equal(bits(results), make_masks())
    results = load(folder, max_proposals=3, img_root=str(folder / 'img'))
    np.testing.assert_array_equal(bits(results), make_masks()[:3])
    results = load(folder, max_proposals=3, min_area=2)
    np.testing.assert_array_equal(bits(results), make_masks()[[0, 1, 3]])
    assert load(folder, min_area=10**6)['proposals'].shape == (0, 24, 32)


@pytest.mark.parametrize('direction, expected', [
    ('horizontal', lambda masks: masks[:, :, ::-1]),
    ('vertical', lambda masks: masks[:, ::-1]),
    ('diagonal', lambda masks: masks[:, ::-1, ::-1]),
])
def test_flips_are_exact(folder, direction, expected):
    results = load(
        folder, dict(type='mmdet.RandomFlip', prob=1., direction=direction))
    np.testing.assert_array_equal(bits(results), expected(make_masks()))


def test_geometry_moves_masks_as_it_moves_the_image(folder):
    image = np.where(make_masks()[0], 255, 0).astype(np.uint8)
    cv2.imwrite(str(folder / 'img' / 'a.png'), np.dstack([image] * 3))
    np.random.seed(0)
    results = load(
        folder, dict(type='mmdet.Resize', scale=(64, 48), keep_ratio=True,
                     interpolation='nearest'),
        dict(type='mmdet.RandomCrop', crop_size=(40, 30)),
        dict(type='mmdet.RandomFlip', prob=1.))
    assert bits(results).shape == (10, 30, 40)
    np.testing.assert_array_equal(
        bits(results)[0], results['img'][..., 0] > 127)


def test_what_the_view_does_not_show_stays_empty(folder):
    results = load(
        folder, dict(type='mmdet.Resize', scale=(320, 240)),
        dict(type='mmdet.RandomCrop', crop_size=(10, 10)))
    assert len(results['proposals']) == 10
    assert results['proposals'].area().sum() < 10 * 100


@pytest.mark.parametrize('transform', [
    dict(type='mmseg.RandomFlip', prob=1.),
    dict(type='mmseg.Resize', scale=(16, 12)),
    dict(type='mmseg.RandomCrop', crop_size=(8, 8))
])
def test_unrecorded_geometry_is_an_error(folder, transform):
    with pytest.raises(ValueError, match='without recording it'):
        load(folder, transform, scope='mmseg')


def test_other_images_are_an_error(folder):
    cv2.imwrite(
        str(folder / 'img' / 'a.png'), np.zeros((WIDTH, HEIGHT, 3), np.uint8))
    with pytest.raises(ValueError, match=r'\(32, 24\).* are for \(24, 32\)'):
        load(folder)
    cv2.imwrite(str(folder / 'img' / 'b.png'), np.zeros((2, 2, 3), np.uint8))
    transform = LoadMaskProposals(str(folder / 'store'))
    with pytest.raises(KeyError, match='not among'):
        transform(dict(img_path='b.png'))


@pytest.mark.parametrize('options', [
    dict(max_proposals=0), dict(max_proposals=True), dict(min_area=-1)
])
def test_wrong_options(folder, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LoadMaskProposals(str(folder / 'store'), **options)
    with pytest.raises(FileNotFoundError, match='no store'):
        LoadMaskProposals(str(folder))


def pipeline(folder, packer, before=(), inside=True):
    proposals = dict(
        type='mmsemi.LoadMaskProposals', store=str(folder / 'store'))
    pack = dict(type=packer)
    return [
        dict(type='LoadImageFromFile'), *before,
        *([] if inside else [proposals]),
        dict(
            type='mmsemi.MultiBranch',
            branch_field=VIEWS,
            unsup_teacher=[proposals, pack] if inside else [pack],
            unsup_student=[dict(type='mmsemi.StrongColor'), pack])
    ]


CASES = [('mmseg', 'mmsemi.PackSegInputs',
          dict(type='mmseg.SegDataPreProcessor', size=(40, 48))),
         ('mmdet', 'mmsemi.PackDetInputs',
          dict(type='mmdet.DetDataPreprocessor', pad_size_divisor=20))]


@pytest.mark.parametrize('scope, packer, preprocessor', CASES)
@pytest.mark.parametrize('inside', [True, False])
def test_through_branches_batches_and_preprocessors(
        folder, scope, packer, preprocessor, inside):
    init_default_scope(scope)
    transforms = Compose(
        pipeline(folder, packer,
                 [dict(type='mmdet.RandomFlip', prob=1.)], inside))
    packed = [
        transforms(
            dict(img_path=str(folder / 'img' / 'a.png'), seg_fields=[]))
        for _ in range(2)
    ]
    batch = MultiBranchDataPreprocessor(preprocessor)(
        pseudo_collate(packed), True)
    samples = batch['data_samples']['unsup_teacher']
    flipped = make_masks()[:, :, ::-1]
    for sample in [*samples, copy.deepcopy(samples[0]), samples[0].to('cpu')]:
        np.testing.assert_array_equal(
            sample.mask_proposals.to_bool().numpy(), flipped)
        assert 'proposals' not in sample
    student = batch['data_samples']['unsup_student'][0]
    assert ('mask_proposals' in student) != inside


def test_boxes_of_mmdet_go_by_the_same_key():
    init_default_scope('mmdet')
    packed = Compose([dict(type='mmsemi.PackDetInputs')])(
        dict(
            img=np.zeros((4, 5, 3), np.uint8),
            proposals=np.zeros((2, 4), np.float32),
            proposals_scores=np.ones(2, np.float32)))
    sample = packed['data_samples']
    assert len(sample.proposals) == 2 and 'mask_proposals' not in sample


@pytest.mark.parametrize('inside', [True, False])
@pytest.mark.parametrize('before, instead', [
    (dict(type='mmseg.RandomCrop', crop_size=(8, 8)), 'mmdet.RandomCrop'),
    (dict(type='RandomApply', transforms=[
        dict(type='mmseg.RandomFlip', prob=.5)
    ]), 'mmdet.RandomFlip')])
def test_configs_with_unrecorded_geometry_are_refused(folder, inside, before,
                                                      instead):
    init_default_scope('mmseg')
    dataset = dict(
        type='mmsemi.UnlabeledImageDataset',
        img_dir=str(folder / 'img'),
        pipeline=pipeline(folder, 'mmsemi.PackSegInputs', [before], inside))
    with pytest.raises(ValueError, match=f'before LoadMask.* Use {instead}'):
        MultiSourceDataset([dataset])
    dataset['pipeline'] = pipeline(
        folder, 'mmsemi.PackSegInputs',
        [dict(type='mmdet.RandomFlip', prob=.5)], inside)
    views = MultiSourceDataset([dataset])[0]
    assert 'mask_proposals' in views['data_samples']['unsup_teacher']


def test_its_name_says_what_it_reads(folder):
    text = repr(LoadMaskProposals(str(folder / 'store'), max_proposals=5))
    assert 'max_proposals=5' in text and 'store' in text
    assert torch.equal(
        load(folder)['proposals'].data, load(folder)['proposals'].data)
