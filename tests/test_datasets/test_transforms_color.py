# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import time

import cv2
import numpy as np
import pytest
from mmcv.transforms.utils import cache_random_params
from mmengine.registry import TRANSFORMS

from mmsemi.datasets.transforms import (ColorJitter, RandomCutout,
                                        RandomGaussianBlur, RandomGrayscale,
                                        StrongColor)


def image(dtype=np.uint8, shape=(33, 41, 3)):
    return np.random.RandomState(0).randint(0, 256, shape).astype(dtype)


def only(name, factor):
    """A jitter that does one step by one factor."""
    steps = dict(brightness=0., contrast=0., saturation=0., hue=0.)
    steps[name] = (factor, factor)
    return ColorJitter(**steps)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_brightness_contrast_saturation_values(dtype):
    img = np.array([[[10, 20, 30], [200, 100, 50]]], dtype)
    out = only('brightness', 1.5)(dict(img=img))['img']
    np.testing.assert_allclose(out, [[[15, 30, 45], [255, 150, 75]]], 1e-5)
    # Grey values by ITU-R 601 (B .114, G .587, R .299), mean rounded: 21.85
    # and 96.45 in float.
    grey = cv2.cvtColor(img, cv2.COLOR_BGR2GRAY)
    mean = grey.mean()
    assert abs(mean - 59.15) <= 0.35
    out = only('contrast', 0.5)(dict(img=img))['img']
    np.testing.assert_allclose(out, img * 0.5 + mean * 0.5, atol=0.51)
    out = only('saturation', 0.)(dict(img=img))['img']
    np.testing.assert_allclose(out, np.repeat(grey[..., None], 3, 2))
    assert out.dtype == dtype
    assert img.tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_hue_turns_the_circle(dtype):
    blue, red, green = [255, 0, 0], [0, 0, 255], [0, 255, 0]
    img = np.array([[red, green, blue, [90, 90, 90]]], dtype)
    third = only('hue', 1 / 3)(dict(img=img))['img']
    np.testing.assert_allclose(
        third, [[green, blue, red, [90, 90, 90]]], atol=6)
    back = only('hue', -1 / 3)(dict(img=third))['img']
    np.testing.assert_allclose(back, img, atol=12)
    assert third.dtype == dtype
    half = only('hue', 0.5)(dict(img=img))['img']
    np.testing.assert_allclose(half, only('hue', -0.5)(dict(img=img))['img'])
    np.testing.assert_allclose(half[0, 0], [255, 255, 0], atol=3)


def test_factor_one_changes_nothing():
    img = image()
    out = ColorJitter(0., 0., 0., 0.)(dict(img=img))['img']
    np.testing.assert_array_equal(out, img)
    tiny = (1e-9, 1e-9)
    out = ColorJitter(0., 0., 0., tiny)(dict(img=img))['img']
    # One uint8 round trip through HSV.
    assert np.abs(out.astype(int) - img).max() <= 7
    img = img.astype(np.float32)
    out = ColorJitter(0., 0., 0., tiny)(dict(img=img))['img']
    np.testing.assert_allclose(out, img, atol=0.02)


def test_float_images_stay_in_range():
    img = image(np.float32)
    for seed in range(5):
        np.random.seed(seed)
        out = ColorJitter(1., 1., 1., 0.5)(dict(img=img))['img']
        assert out.dtype == np.float32
        assert 0 <= out.min() and out.max() <= 255.01


def test_order_and_factors_are_random():
    jitter = ColorJitter()
    draws = []
    for seed in range(30):
        np.random.seed(seed)
        draws.append(dict(jitter._random_params()))
    orders = {tuple(draw) for draw in draws}
    assert len(orders) > 10
    brightness = [draw['brightness'] for draw in draws]
    assert 0.5 <= min(brightness) < 0.7 and 1.3 < max(brightness) <= 1.5
    hue = [draw['hue'] for draw in draws]
    assert -0.25 <= min(hue) < -0.15 and 0.15 < max(hue) <= 0.25


def test_grayscale():
    img = image()
    out = RandomGrayscale(1.)(dict(img=img))['img']
    expected = img @ np.array([0.114, 0.587, 0.299])
    for channel in range(3):
        np.testing.assert_allclose(out[..., channel], expected, atol=0.51)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(
        RandomGrayscale(0.)(dict(img=img))['img'], img)


def test_blur():
    img = np.zeros((21, 21, 3), np.float32)
    img[10, 10] = 100.
    out = RandomGaussianBlur((1.5, 1.5), 1.)(dict(img=img))['img']
    np.testing.assert_allclose(out.sum((0, 1)), [100] * 3, rtol=1e-4)
    # Two-dimensional Gaussian: its peak is 1 / (2 pi sigma^2).
    np.testing.assert_allclose(out[10, 10, 0], 100 / (2 * np.pi * 2.25), 0.02)
    ratio = out[10, 12, 0] / out[10, 10, 0]
    np.testing.assert_allclose(ratio, np.exp(-4 / (2 * 2.25)), rtol=1e-3)


def test_cutout_leaves_labels_alone():
    masks = object()
    results = dict(
        img=np.full((40, 60, 3), 7, np.uint8),
        gt_masks=masks,
        gt_bboxes=np.ones((2, 4)))
    before = results['img']
    cutout = RandomCutout((2, 2), (0.25, 0.25), fill=(1, 2, 3), prob=1.)
    patches, seed = cutout._random_params()
    out = cutout(results)
    assert (before == 7).all()
    assert out['gt_masks'] is masks and (out['gt_bboxes'] == 1).all()
    assert patches.shape == (2, 4) and (patches[:, 2:] == 0.25).all()
    painted = (out['img'] == [1, 2, 3]).all(-1)
    assert ((out['img'] == 7).all(-1) | painted).all()
    # Each patch is 15 x 10; two of them may overlap.
    assert 150 <= painted.sum() <= 300


def test_cutout_noise_and_extremes():
    img = np.full((40, 60, 3), 7, np.uint8)
    out = RandomCutout(1, (1., 1.), 'noise', 1.)(dict(img=img))['img']
    assert out.std() > 60
    out = RandomCutout(1, (1., 1.), 0, 1.)(dict(img=img))['img']
    assert (out == 0).all()
    out = RandomCutout(0, (1., 1.), 0, 1.)(dict(img=img))['img']
    assert (out == 7).all()
    out = RandomCutout(1, (1e-6, 1e-6), 0, 1.)(dict(img=img))['img']
    assert (out == 0).all(-1).sum() == 1


@pytest.mark.parametrize('shape', [(64, 64, 3), (64, 63, 1), (64, 63)])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_strong_color_moves_nothing(shape, dtype):
    # A dark square on a bright ground stays where it is.
    img = np.full(shape, 220, dtype)
    img[20:40, 24:48] = 20
    # Flips leave views with negative strides behind.
    img = img[:, ::-1]
    strong = StrongColor(cutout=dict(prob=0.5))
    square = img.reshape(64, shape[1], -1)[..., 0] < 100
    for seed in range(8):
        np.random.seed(seed)
        results = strong(dict(img=img, img_shape=shape[:2]))
        assert set(results) == {'img', 'img_shape'}
        out = results['img']
        assert out.shape == shape and out.dtype == dtype
        values = out.reshape(64, shape[1], -1).mean(-1)
        inside, outside = values[square], values[~square]
        # Further in than any blur reaches, except under a patch.
        assert np.median(inside) < np.median(outside)
    assert (img.reshape(64, shape[1], -1)[..., 0] < 100).sum() == 480


def test_strong_color_fields():
    strong = StrongColor(0.4, 0.3, 0.2, 0.1, 0.7, 0.6, 0.5, (1., 3.))
    jitter, grey, blur = strong.transforms
    assert jitter.brightness == (0.6, 1.4) and jitter.contrast == (0.7, 1.3)
    assert jitter.saturation == (0.8, 1.2) and jitter.hue == (-0.1, 0.1)
    assert (jitter.prob, grey.prob, blur.prob) == (0.7, 0.6, 0.5)
    assert blur.sigma == (1., 3.)
    built = TRANSFORMS.build(
        dict(type='mmsemi.StrongColor', cutout=dict(prob=1.)))
    assert [type(t).__name__ for t in built.transforms] == [
        'ColorJitter', 'RandomGrayscale', 'RandomGaussianBlur', 'RandomCutout'
    ]
    assert built.transforms[0].brightness == (0.5, 1.5)


def test_strong_color_frequencies():
    """Each step fires as often as its field says."""
    np.random.seed(0)
    fired = np.array([[
        step._random_params() is not None for step in StrongColor().transforms
    ] for _ in range(600)])
    np.testing.assert_allclose(fired.mean(0), [0.8, 0.2, 0.5], atol=0.05)


def test_draws_follow_the_seed_and_can_be_shared():
    strong = StrongColor(cutout=dict(fill='noise', prob=1.))
    outs = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        outs.append(strong(dict(img=image()))['img'])
    np.testing.assert_array_equal(outs[0], outs[1])
    assert (outs[0] != outs[2]).any()
    with cache_random_params(strong):
        shared = [strong(dict(img=image()))['img'] for _ in range(2)]
    np.testing.assert_array_equal(*shared)


@pytest.mark.parametrize('side, budget', [(64, 0.001), (1024, 0.1)])
def test_speed(side, budget):
    strong = StrongColor(
        jitter_prob=1., gray_prob=1., blur_prob=1., cutout=dict(prob=1.))
    img = image(shape=(side, side, 3))
    strong(dict(img=img))
    times = []
    for _ in range(10):
        start = time.process_time()
        strong(dict(img=img))
        times.append(time.process_time() - start)
    assert min(times) < budget


@pytest.mark.parametrize('build, message', [
    (lambda: ColorJitter(prob=1.5), 'ColorJitter: prob .* 1.5'),
    (lambda: ColorJitter(brightness=-1), 'brightness'),
    (lambda: ColorJitter(contrast=(1.2, 0.8)), r'contrast .*\(1.2, 0.8\)'),
    (lambda: ColorJitter(saturation=(-0.1, 1)), 'saturation'),
    (lambda: ColorJitter(hue=0.6), r'hue .*\[-0.5, 0.5\]'),
    (lambda: RandomGrayscale(-0.1), 'RandomGrayscale: prob'),
    (lambda: RandomGaussianBlur((0, 1)), 'sigma'),
    (lambda: RandomGaussianBlur((2, 1)), 'sigma'),
    (lambda: RandomCutout(-1), 'num_patches'),
    (lambda: RandomCutout((3, 1)), 'num_patches'),
    (lambda: RandomCutout(ratio=(0, 0.1)), 'ratio'),
    (lambda: RandomCutout(ratio=(0.5, 1.1)), 'ratio'),
    (lambda: RandomCutout(fill='mean'), "'mean'"),
    (lambda: StrongColor(blur_prob=2), 'RandomGaussianBlur: prob'),
])
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize('img', [
    np.zeros((8, 8, 4), np.uint8),
    np.zeros((8, 8, 3), np.float64),
    np.zeros((8, 8, 3), np.int32)
])
def test_wrong_images(img):
    with pytest.raises(ValueError, match=str(img.dtype)):
        ColorJitter()(dict(img=img))
