# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import pytest
import torch

from mmsemi.structures.view_geometry import (compose_view_matrix,
                                             is_axis_aligned, is_identity,
                                             masks_to_boxes, warp_boxes,
                                             warp_masks)

SIZES = [(7, 9), (8, 6), (41, 25), (1, 1)]


def scale(x, y=None):
    return torch.diag(torch.tensor([x, x if y is None else y, 1.]))


def shift(x, y):
    matrix = torch.eye(3)
    matrix[0, 2], matrix[1, 2] = x, y
    return matrix


def flip(height, width, direction):
    matrix = torch.eye(3)
    if direction in ('horizontal', 'diagonal'):
        matrix[0, 0], matrix[0, 2] = -1, width
    if direction in ('vertical', 'diagonal'):
        matrix[1, 1], matrix[1, 2] = -1, height
    return matrix


def rotation(degrees, x, y):
    angle = math.radians(degrees)
    matrix = torch.eye(3)
    matrix[0, 0] = matrix[1, 1] = math.cos(angle)
    matrix[1, 0] = math.sin(angle)
    matrix[0, 1] = -math.sin(angle)
    return shift(x, y) @ matrix @ shift(-x, -y)


def random_masks(num, height, width, dtype=torch.bool):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(num, height, width, generator=generator)
    return masks > 0.5 if dtype == torch.bool else masks.to(dtype)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('dtype', [torch.bool, torch.float32, torch.float16])
def test_exact_warps(size, dtype):
    masks = random_masks(3, *size, dtype=dtype)
    for direction, dims in dict(
            horizontal=[2], vertical=[1], diagonal=[1, 2]).items():
        out = warp_masks(masks, flip(*size, direction), size)
        assert out.dtype == dtype
        assert torch.equal(out, masks.flip(dims))
    assert torch.equal(warp_masks(masks, torch.eye(3), size), masks)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('factors', [(2, 2), (3, 3), (5, 5), (1, 4), (7, 2)])
def test_upscaling_by_a_whole_factor_is_exact(size, factors):
    masks = random_masks(2, *size)
    y, x = factors
    out_shape = (size[0] * y, size[1] * x)
    expected = masks.repeat_interleave(y, 1).repeat_interleave(x, 2)
    out = warp_masks(masks, scale(float(x), float(y)), out_shape)
    assert torch.equal(out, expected)


def test_shift_crop_and_padding_fill_with_zero():
    masks = random_masks(2, 7, 9)
    out = warp_masks(masks, shift(-2, -3), (4, 5))
    assert torch.equal(out, masks[:, 3:7, 2:7])
    out = warp_masks(masks, shift(3, 1), (10, 14))
    assert torch.equal(out[:, 1:8, 3:12], masks)
    assert out.sum() == masks.sum()
    assert not warp_masks(masks, shift(9, 0), (7, 9)).any()


def test_shrinking_to_half_reads_the_upper_left_pixel():
    masks = random_masks(2, 8, 6)
    out = warp_masks(masks, scale(0.5), (4, 3))
    assert torch.equal(out, masks[:, ::2, ::2])
    # A matrix that carries float32 noise must not change the choice.
    noisy = scale(0.5) @ scale(1.37) @ scale(1 / 1.37) @ scale(3) @ scale(
        1 / 3)
    assert torch.equal(warp_masks(masks, noisy, (4, 3)), out)


def test_shrinking_to_a_third_reads_the_middle_pixel():
    masks = random_masks(2, 9, 6)
    out = warp_masks(masks, scale(1 / 3), (3, 2))
    assert torch.equal(out, masks[:, 1::3, 1::3])


@pytest.mark.parametrize('size', [(31, 31), (32, 32)])
def test_quarter_turns_are_exact(size):
    masks = random_masks(2, *size)
    centre = size[1] / 2, size[0] / 2
    for turns in (1, 2, 3):
        out = warp_masks(masks, rotation(90 * turns, *centre), size)
        # Positive angles turn clockwise in image coordinates.
        assert torch.equal(out, torch.rot90(masks, -turns, (1, 2)))


def test_one_matrix_serves_the_whole_batch():
    masks = random_masks(5, 20, 30)
    matrix = rotation(17, 15, 10) @ scale(1.3)
    out = warp_masks(masks, matrix, (25, 35))
    alone = [warp_masks(mask[None], matrix, (25, 35)) for mask in masks]
    assert torch.equal(out, torch.cat(alone))


def test_rotation_is_right_to_a_tenth_of_a_pixel():
    y, x = torch.meshgrid(
        torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing='ij')
    disk = ((x - 20)**2 + (y - 30)**2 < 144)[None]
    out = warp_masks(disk, rotation(30, 32, 32), (64, 64))
    angle = math.radians(30)
    cx = 32 + math.cos(angle) * -12 - math.sin(angle) * -2
    cy = 32 + math.sin(angle) * -12 + math.cos(angle) * -2
    # A pixel-index convention would be 0.37 px off.
    assert abs(x[out[0]].mean() - cx) < 0.1
    assert abs(y[out[0]].mean() - cy) < 0.1
    expected = ((x - cx)**2 + (y - cy)**2 < 144)[None]
    assert (out & expected).sum() / (out | expected).sum() >= 0.96


def test_bilinear_keeps_constants_and_interpolates():
    ones = torch.ones(1, 4, 4)
    assert torch.equal(
        warp_masks(ones, scale(2.), (8, 8), 'bilinear'), torch.ones(1, 8, 8))
    out = warp_masks(ones, shift(2, 0), (4, 4), 'bilinear')
    assert out[0, 0].tolist() == [0, 0, 1, 1]
    ramp = torch.tensor([[[0., 1.]]])
    out = warp_masks(ramp, scale(2., 1.), (1, 4), 'bilinear')
    torch.testing.assert_close(out, torch.tensor([[[0, 0.25, 0.75, 1]]]))
    half = warp_masks(ramp.half(), scale(2., 1.), (1, 4), 'bilinear')
    assert half.dtype == torch.float16
    out = warp_masks(ramp.bool(), scale(2., 1.), (1, 4), 'bilinear')
    assert out.tolist() == [[[False, False, True, True]]]


def test_label_maps_keep_their_labels():
    labels = torch.tensor([[[3, 7], [255, 0]]], dtype=torch.uint8)
    out = warp_masks(labels, flip(2, 2, 'horizontal'), (2, 2))
    assert out.tolist() == [[[7, 3], [0, 255]]]
    with pytest.raises(TypeError, match='uint8'):
        warp_masks(labels, torch.eye(3), (2, 2), 'bilinear')


def test_perspective_hides_what_is_behind_the_camera():
    matrix = torch.tensor([[1., 0, 0], [0, 1, 0], [-0.5, 0, 1]])
    out = warp_masks(torch.ones(1, 4, 4), torch.linalg.inv(matrix), (4, 8))
    # inv(matrix) back-projects x to x / (1 - x / 2): real for x < 2 only,
    # and within the 4 source pixels for x <= 4 / 3.
    assert out[0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize('mode', ['nearest', 'bilinear'])
def test_no_masks(mode):
    out = warp_masks(
        torch.zeros(0, 7, 9, dtype=torch.bool), scale(2.), (14, 18), mode)
    assert out.shape == (0, 14, 18) and out.dtype == torch.bool
    assert warp_masks(torch.zeros(2, 0, 5), torch.eye(3), (3, 4)).sum() == 0
    assert warp_boxes(torch.zeros(0, 4), scale(2.), (8, 8)).shape == (0, 4)
    assert masks_to_boxes(torch.zeros(0, 7, 9)).shape == (0, 4)
    assert masks_to_boxes(torch.zeros(2, 0, 9)).tolist() == [[0] * 4] * 2


def test_warp_boxes():
    boxes = torch.tensor([[1., 2, 4, 6], [0, 0, 9, 7]])
    out = warp_boxes(boxes, flip(7, 9, 'horizontal'), (7, 9))
    assert out.tolist() == [[5, 2, 8, 6], [0, 0, 9, 7]]
    out = warp_boxes(boxes, scale(2., 0.5), (3, 10))
    assert out.tolist() == [[2, 1, 8, 3], [0, 0, 10, 3]]
    # The hull of a box that was turned by 45 degrees around its centre.
    out = warp_boxes(
        torch.tensor([[8., 8, 12, 12]]), rotation(45, 10, 10), (20, 20))
    reach = math.sqrt(8)
    expected = torch.tensor([[10 - reach, 10 - reach, 10 + reach, 10 + reach]])
    torch.testing.assert_close(out, expected)
    # Gone on the right: clipped to nothing.
    out = warp_boxes(boxes[:1], shift(20, 0), (7, 9))
    assert out.tolist() == [[9, 2, 9, 6]]
    assert warp_boxes(boxes.half(), torch.eye(3), (7, 9)).dtype == \
        torch.float32


def test_masks_to_boxes():
    masks = torch.zeros(4, 7, 9)
    masks[0, 2:5, 3:8] = 1
    masks[1, 6, 8] = 0.25
    masks[3, 0, 0] = masks[3, 6, 4] = 1
    expected = [[3, 2, 8, 5], [8, 6, 9, 7], [0, 0, 0, 0], [0, 0, 5, 7]]
    for dtype in (torch.float32, torch.bool):
        out = masks_to_boxes(masks.to(dtype))
        assert out.tolist() == expected and out.dtype == torch.float32
    assert masks_to_boxes(masks.ceil().byte()).tolist() == expected


def test_boxes_follow_masks_through_a_flip_and_a_scale():
    masks = random_masks(4, 15, 17)
    masks[:, :4] = masks[:, :, :5] = masks[:, 12:] = False
    matrix = scale(3.) @ flip(15, 17, 'diagonal')
    warped = warp_masks(masks, matrix, (45, 51))
    boxes = warp_boxes(masks_to_boxes(masks), matrix, (45, 51))
    assert torch.equal(masks_to_boxes(warped), boxes)


def test_compose_view_matrix():
    teacher = flip(64, 96, 'horizontal') @ scale(1.5)
    student = rotation(20, 30, 40) @ scale(0.75)
    matrix = compose_view_matrix(teacher, student)
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix @ teacher, student, atol=1e-4, rtol=0)
    assert is_identity(compose_view_matrix(student, student))
    # Far from the origin float32 alone would lose the half pixel.
    far = shift(4e4, 4e4) @ rotation(33, 0, 0)
    assert is_identity(compose_view_matrix(far, far), atol=1e-6)


def test_matrix_predicates():
    assert is_identity(torch.eye(3) + 5e-5)
    assert not is_identity(shift(2e-4, 0))
    assert is_axis_aligned(
        flip(7, 9, 'diagonal') @ scale(0.3, 2.) @ shift(5, 6))
    assert not is_axis_aligned(rotation(0.01, 0, 0))
    assert not is_axis_aligned(
        torch.tensor([[1., 0, 0], [0, 1, 0], [1e-3, 0, 1]]))
    shared = rotation(25, 40, 50)
    assert is_axis_aligned(
        compose_view_matrix(shared,
                            flip(80, 90, 'vertical') @ shared))


def test_autocast_changes_nothing():
    boxes = torch.tensor([[1001.3, 700.7, 1290.1, 795.9]])
    masks = random_masks(2, 33, 47)
    matrix = rotation(7, 20, 15) @ scale(1.1)

    def everything():
        return (warp_boxes(boxes, scale(1.1), (2000, 2000)),
                compose_view_matrix(matrix, scale(1.1)),
                warp_masks(masks, matrix, (40, 50)),
                warp_masks(masks.float(), matrix, (40, 50),
                           'bilinear'), masks_to_boxes(masks))

    outside = everything()
    with torch.autocast('cpu', torch.bfloat16):
        inside = everything()
    for left, right in zip(outside, inside):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    torch.testing.assert_close(outside[0], boxes * 1.1, atol=1e-3, rtol=0)


@pytest.mark.parametrize('call, message', [
    (lambda: warp_masks(torch.ones(4, 4), torch.eye(3), (4, 4)), r'\(4, 4\)'),
    (lambda: warp_masks(torch.ones(1, 4, 4), torch.eye(2),
                        (4, 4)), r'matrix must have shape \(3, 3\)'),
    (lambda: warp_masks(torch.ones(1, 4, 4), torch.zeros(3, 3),
                        (4, 4)), 'inverted'),
    (lambda: warp_masks(torch.ones(1, 4, 4),
                        torch.eye(3) * math.nan, (4, 4)), 'finite'),
    (lambda: warp_masks(torch.ones(1, 4, 4), torch.eye(3),
                        (0, 4)), 'out_shape'),
    (lambda: warp_masks(torch.ones(1, 4, 4), torch.eye(3),
                        (4, 4, 3)), 'out_shape'),
    (lambda: warp_masks(torch.ones(1, 4, 4), torch.eye(3),
                        (4, 4), 'area'), "'area'"),
    (lambda: warp_boxes(torch.ones(4), torch.eye(3), (4, 4)), r'\(N, 4\)'),
    (lambda: masks_to_boxes(torch.ones(4, 4)), r'\(N, H, W\)'),
    (lambda: compose_view_matrix(torch.zeros(3, 3), torch.eye(3)),
     'teacher cannot be inverted'),
    (lambda: compose_view_matrix(torch.eye(3), torch.ones(3)),
     'student must have shape'),
])
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_masks_must_be_a_tensor():
    with pytest.raises(TypeError, match='list'):
        warp_masks([[[1]]], torch.eye(3), (1, 1))
