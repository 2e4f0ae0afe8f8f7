# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import cv2
import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch

from mmsemi.datasets.transforms import (FlipWithWords, LoadReferringMask,
                                        ResizeTo, mirror_sentence)
from mmsemi.structures.view_geometry import warp_masks

LEFT_HALF = [0, 0, 4, 0, 4, 4, 0, 4]
MIDDLE = [2, 1, 6, 1, 6, 3, 2, 3]


def load(mask, height=4, width=8, **more):
    return LoadReferringMask()(
        dict(ref_mask=mask, height=height, width=width, **more))


def sample(text='dog', height=4, width=6):
    rng = np.random.RandomState(0)
    return dict(
        img=rng.randint(0, 256, (height, width, 3)).astype(np.uint8),
        gt_seg_map=rng.randint(0, 2, (height, width)).astype(np.uint8),
        seg_fields=['gt_seg_map'],
        text=text)


# Masks --------------------------------------------------------------------


def test_overlapping_polygons_are_a_union():
    results = load([LEFT_HALF, MIDDLE])
    expected = np.zeros((4, 8), np.uint8)
    expected[:, :4] = 1
    expected[1:3, 2:6] = 1
    np.testing.assert_array_equal(results['gt_seg_map'], expected)
    assert results['gt_seg_map'].dtype == np.uint8
    assert results['seg_fields'] == ['gt_seg_map']


def test_run_lengths():
    mask = np.zeros((4, 8), np.uint8)
    mask[1:3, 2:6] = 1
    rle = mask_utils.encode(np.asfortranarray(mask))
    text = dict(rle, counts=rle['counts'].decode())
    # Column by column: 2 empty columns and a row, then 4 x (2 on, 2 off).
    plain = dict(size=[4, 8], counts=[9, 2, 2, 2, 2, 2, 2, 2, 9])
    for segmentation in (rle, text, plain, [MIDDLE]):
        np.testing.assert_array_equal(
            load(segmentation)['gt_seg_map'], mask)


def test_missing_masks_and_other_sizes():
    with pytest.raises(ValueError, match='no ref_mask.*labeled=True'):
        LoadReferringMask()(dict(height=4, width=8))
    assert load([MIDDLE], ori_shape=(4, 8))['gt_seg_map'].sum() == 8
    with pytest.raises(ValueError, match=r'x.png has \(8, 4\) pixels'):
        load([MIDDLE], ori_shape=(8, 4), img_path='x.png')


# Resizing -----------------------------------------------------------------


def test_resize_records_and_keeps_maps_at_the_centres():
    results = sample(height=4, width=6)
    before = {k: results[k].copy() for k in ('img', 'gt_seg_map')}
    out = ResizeTo(scale=(9, 8))(results)
    assert out['img'].shape == (8, 9, 3) and out['img_shape'] == (8, 9)
    np.testing.assert_array_equal(
        out['img'], cv2.resize(before['img'], (9, 8)))
    # On the edge of two pixels the left one is read.
    rows = np.ceil((np.arange(8) + 0.5) * 4 / 8).astype(int) - 1
    columns = np.ceil((np.arange(9) + 0.5) * 6 / 9).astype(int) - 1
    np.testing.assert_array_equal(out['gt_seg_map'],
                                  before['gt_seg_map'][rows][:, columns])
    np.testing.assert_allclose(out['homography_matrix'],
                               np.diag([1.5, 2., 1.]))
    assert out['scale_factor'] == (1.5, 2.) and out['keep_ratio'] is False
    # A second one multiplies from the left.
    out = ResizeTo(scale=(6, 4))(out)
    np.testing.assert_allclose(out['homography_matrix'], np.eye(3))


@pytest.mark.parametrize('scale', [(9, 5), (4, 3), (3, 2), (24, 16)])
def test_maps_move_as_mask_proposals_do(scale):
    results = sample(height=4, width=6)
    mask = torch.from_numpy(results['gt_seg_map'].copy())[None]
    out = FlipWithWords(prob=1.)(ResizeTo(scale=scale)(results))
    moved = warp_masks(mask, torch.from_numpy(out['homography_matrix']),
                       out['img_shape'])
    np.testing.assert_array_equal(moved[0].numpy(), out['gt_seg_map'])


@pytest.mark.parametrize('scale', [480, (480, ), (0, 4), (4., 4.)])
def test_refused_scale(scale):
    with pytest.raises(ValueError, match='ResizeTo.scale must be'):
        ResizeTo(scale=scale)


# Flipping -----------------------------------------------------------------


@pytest.mark.parametrize('text, mirrored', [
    ('red dog', 'red dog'),
    ('man on the left', 'man on the right'),
    ('Left-most cup', 'Right-most cup'),
    ('second from LEFT', 'second from RIGHT'),
    ('rightmost cat left of a dog', 'leftmost cat right of a dog'),
    ('the lefthand chair', 'the righthand chair'),
    ('rt', 'lft'),
    ('lft guy', 'rt guy'),
    ('eastern tower', 'western tower'),
    ('brightly leftover', 'brightly leftover'),
    ('first man', None),
    ('last cup', None),
    ("3 o'clock", None),
    ('cake at 9 oclock on the left', None),
    ('turning clockwise', None),
    ('clock', 'clock'),
])
def test_mirrored_sentences(text, mirrored):
    assert mirror_sentence(text) == mirrored


@pytest.mark.parametrize('text, directions, flipped, expected', [
    ('dog', 'keep', True, 'dog'),
    ('left dog', 'keep', False, 'left dog'),
    ('left dog', 'swap', True, 'right dog'),
    ('first dog', 'swap', False, 'first dog'),
    (['dog', 'cat'], 'keep', True, ['dog', 'cat']),
    (['dog', 'left cat'], 'keep', False, ['dog', 'left cat']),
    (['dog', 'left cat'], 'swap', True, ['dog', 'right cat']),
    (['first dog', 'left cat'], 'swap', False, ['first dog', 'left cat']),
])
def test_flip_follows_the_words(text, directions, flipped, expected):
    results = sample(text)
    before = {k: results[k].copy() for k in ('img', 'gt_seg_map')}
    out = FlipWithWords(prob=1., directions=directions)(results)
    assert out['flip'] is flipped and out['text'] == expected
    step = -1 if flipped else 1
    for key, value in before.items():
        np.testing.assert_array_equal(out[key], value[:, ::step])
    if flipped:
        assert out['flip_direction'] == 'horizontal'
        # The edge x = 1 of the image is at 6 - 1 in the view.
        np.testing.assert_array_equal(
            out['homography_matrix'] @ [1, 0, 1], [5, 0, 1])
    else:
        assert out['flip_direction'] is None
        assert 'homography_matrix' not in out


def test_flip_multiplies_behind_a_resize():
    out = FlipWithWords(prob=1.)(ResizeTo(scale=(12, 4))(sample()))
    np.testing.assert_array_equal(
        out['homography_matrix'] @ [1, 0, 1], [10, 0, 1])


def test_probability_and_the_same_draws_for_every_sentence():
    np.random.seed(0)
    flip = FlipWithWords(prob=0.5)
    done = [flip(sample())['flip'] for _ in range(200)]
    assert 70 < sum(done) < 130
    states = []
    for text in ('dog', 'left dog'):
        np.random.seed(3)
        flip(sample(text))
        states.append(np.random.rand())
    assert states[0] == states[1]
    assert not FlipWithWords(prob=0.)(sample())['flip']


def test_refused_flips():
    with pytest.raises(ValueError, match='prob must be between'):
        FlipWithWords(prob=2.)
    with pytest.raises(ValueError, match="one of .* got 'drop'"):
        FlipWithWords(directions='drop')
    with pytest.raises(ValueError, match='no text'):
        FlipWithWords()(dict(img=np.zeros((2, 2, 3))))
