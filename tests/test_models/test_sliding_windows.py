# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
from torch import nn

from mmsemi.models.sliding_windows import slide_logits, sliding_windows


class Scale(nn.Module):
    """Logits x and 2x, and the metainfo that it was given."""

    def __init__(self):
        super().__init__()
        self.metas = []

    def encode_decode(self, inputs, metas):
        self.metas.append(metas)
        return torch.cat([inputs, 2 * inputs], 1)


class Places(nn.Module):
    """Logits 0 and the mean over the window, everywhere."""

    def encode_decode(self, inputs, metas):
        mean = inputs.mean((2, 3), keepdim=True).expand(inputs.shape)
        return torch.cat([torch.zeros_like(mean), mean], 1)


def test_truncated_windows_of_unimatch_v1():
    assert sliding_windows(1024, 2048, 801, 534, 'truncate') == [
        (0, 0, 801, 801), (0, 534, 801, 801), (0, 1068, 801, 801),
        (0, 1602, 801, 446), (534, 0, 490, 801), (534, 534, 490, 801),
        (534, 1068, 490, 801), (534, 1602, 490, 446)
    ]


def test_shifted_windows_of_unimatch_v2():
    assert sliding_windows(1024, 2048, 798, 532) == [
        (y, x, 798, 798) for y in (0, 226) for x in (0, 532, 1064, 1250)
    ]


@pytest.mark.parametrize('border, expected', [
    ('shift', [(0, 0, 4, 4), (0, 2, 4, 4)]),
    # A window starts at every multiple of the stride, needed or not.
    ('truncate', [(0, 0, 4, 4), (0, 2, 4, 4), (0, 4, 4, 2), (2, 0, 2, 4),
                  (2, 2, 2, 4), (2, 4, 2, 2)]),
])
def test_windows_that_end_at_the_border(border, expected):
    assert sliding_windows(4, 6, 4, 2, border) == expected


@pytest.mark.parametrize('border', ['shift', 'truncate'])
def test_small_images_are_one_window(border):
    assert sliding_windows(3, 5, 8, 5, border) == [(0, 0, 3, 5)]


def test_height_and_width_may_differ():
    assert sliding_windows(4, 4, (4, 2), (3, 2)) == [(0, 0, 4, 2),
                                                     (0, 2, 4, 2)]


@pytest.mark.parametrize('border', ['shift', 'truncate'])
@pytest.mark.parametrize('shape', [(1, 1), (7, 9), (10, 4), (13, 23)])
@pytest.mark.parametrize('size, stride', [(4, 4), (4, 3), (5, 1), (16, 7)])
def test_every_pixel_is_covered(shape, size, stride, border):
    covered = torch.zeros(shape)
    for y, x, h, w in sliding_windows(*shape, size, stride, border):
        assert h > 0 and w > 0 and y + h <= shape[0] and x + w <= shape[1]
        covered[y:y + h, x:x + w] += 1
    assert (covered > 0).all()


@pytest.mark.parametrize('args, message', [
    ((0, 4, 2, 2), 'The image is 0 x 4'),
    ((4, 4, 0, 1), 'test_cfg.crop_size=0'),
    ((4, 4, 2, 1.5), 'test_cfg.stride=1.5'),
    ((4, 4, (2, 2, 2), 1), r'test_cfg.crop_size=\(2, 2, 2\)'),
    ((4, 4, 2, 3), 'test_cfg.stride=3 is larger than test_cfg.crop_size=2'),
    ((4, 4, (2, 4), (2, 5)), r'test_cfg.stride=\(2, 5\) is larger'),
    ((4, 4, 2, 2, 'pad'), "test_cfg.border='pad'"),
])
def test_wrong_windows_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        sliding_windows(*args)


@pytest.mark.parametrize('border', ['shift', 'truncate'])
def test_a_pixelwise_model_is_not_changed(border):
    inputs = torch.randn((2, 1, 7, 9))
    logits = slide_logits(Scale(), inputs, 4, 3, border)
    torch.testing.assert_close(logits, torch.cat([inputs, 2 * inputs], 1))
    shares = slide_logits(Scale(), inputs, 4, 3, border, 'softmax')
    torch.testing.assert_close(shares, logits.softmax(1))


def test_what_is_averaged():
    """Windows (0, 0, 1, 2) and (0, 1, 1, 2), with the means 0 and 2."""
    inputs = torch.tensor([[[[0., 0., 4.]]]])
    logits = slide_logits(Places(), inputs, (1, 2), 1)
    torch.testing.assert_close(logits[0, 1, 0], torch.tensor([0., 1., 2.]))
    shares = slide_logits(Places(), inputs, (1, 2), 1, average='softmax')
    ends = torch.tensor([0., 2.]).sigmoid()
    torch.testing.assert_close(shares[0, 1, 0],
                               torch.stack([ends[0], ends.mean(), ends[1]]))
    # Truncated, the window (0, 2, 1, 1) is a third one, with the mean 4.
    logits = slide_logits(Places(), inputs, (1, 2), 1, 'truncate')
    torch.testing.assert_close(logits[0, 1, 0], torch.tensor([0., 1., 3.]))


def test_metainfo_stays_and_tells_the_window():
    model = Scale()
    metas = [dict(img_shape=(3, 5), pad_shape=(4, 5), ori_shape=(9, 9))] * 2
    slide_logits(model, torch.zeros((2, 1, 4, 5)), 4, 2, metas=metas)
    assert metas == [
        dict(img_shape=(3, 5), pad_shape=(4, 5), ori_shape=(9, 9))
    ] * 2
    assert len(model.metas) == 2
    for given in model.metas:
        assert len(given) == 2
        for meta in given:
            assert isinstance(meta['img_shape'], torch.Size)
            assert meta == dict(
                img_shape=(4, 4), pad_shape=(4, 4), ori_shape=(9, 9))


def test_unknown_average():
    with pytest.raises(ValueError, match="test_cfg.average='max'"):
        slide_logits(Scale(), torch.zeros((1, 1, 2, 2)), 2, 1, average='max')
