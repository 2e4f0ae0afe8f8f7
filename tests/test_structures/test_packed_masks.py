# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import pickle

import pytest
import torch
from mmdet.structures import DetDataSample
from mmseg.structures import SegDataSample

from mmsemi.structures import packed_masks
from mmsemi.structures.packed_masks import PackedMasks, count_pixels


def random_masks(num, height=5, width=7):
    generator = torch.Generator().manual_seed(num)
    return torch.rand((num, height, width), generator=generator) < .4


@pytest.mark.parametrize('num', [0, 1, 7, 8, 9, 17])
def test_masks_come_back(num):
    masks = random_masks(num)
    packed = PackedMasks.from_bool(masks)
    assert packed.data.dtype == torch.uint8
    assert packed.data.shape == ((num + 7) // 8, 5, 7)
    assert packed.shape == (num, 5, 7) and len(packed) == num
    assert packed.to_bool().dtype == torch.bool
    assert packed.to_bool().equal(masks)
    assert packed.area().dtype == torch.int64
    assert packed.area().tolist() == masks.flatten(1).sum(1).tolist()


def test_the_lowest_bit_is_the_first_mask():
    masks = torch.zeros((10, 1, 3), dtype=torch.uint8)
    masks[0, 0, 0] = masks[3, 0, 0] = masks[7, 0, 1] = masks[9, 0, 2] = 1
    packed = PackedMasks.from_bool(masks)
    assert packed.data.tolist() == [[[9, 128, 0]], [[0, 0, 2]]]
    # Other integers than 1 are foreground too.
    assert PackedMasks.from_bool(masks.int() * -300).data.equal(packed.data)
    # So does a view whose pixels are not in a row.
    turned = PackedMasks.from_bool(masks.bool().transpose(1, 2))
    assert turned.data.equal(packed.data.transpose(1, 2))


def test_bits_beyond_the_last_mask_do_not_matter():
    packed = PackedMasks(torch.full((1, 2, 2), 255, dtype=torch.uint8), 3)
    assert packed.to_bool().shape == (3, 2, 2)
    assert packed.area().tolist() == [4, 4, 4]


def test_padding_is_background():
    masks = random_masks(9)
    packed = PackedMasks.from_bool(masks)
    padded = packed.pad_to(6, 10)
    assert padded.shape == (9, 6, 10)
    assert padded.to_bool()[:, :5, :7].equal(masks)
    assert padded.area().equal(packed.area())
    assert packed.pad_to(5, 7) is packed
    assert PackedMasks.from_bool(masks[:0]).pad_to(8, 8).shape == (0, 8, 8)
    with pytest.raises(ValueError, match=r'5 x 7 pixels to \(5, 6\)'):
        packed.pad_to(5, 6)


@pytest.mark.parametrize('sample', [SegDataSample, DetDataSample])
def test_it_travels_in_a_data_sample(sample):
    packed = PackedMasks.from_bool(random_masks(9))
    sample = sample()
    sample.set_data(dict(mask_proposals=packed))
    assert 'mask_proposals' in sample
    for other in (sample.to('cpu'), sample.cpu(), sample.clone(),
                  copy.deepcopy(sample), pickle.loads(pickle.dumps(sample))):
        assert other.mask_proposals.data.equal(packed.data)
        assert len(other.mask_proposals) == 9


def test_it_stays_bytes_on_the_way():
    packed = PackedMasks.from_bool(random_masks(9))
    moved = packed.to('meta')
    assert moved.device.type == 'meta' and packed.device.type == 'cpu'
    assert packed.to(torch.float16).data.equal(packed.data)
    assert 'num_masks=9, height=5, width=7' in repr(packed)


@pytest.mark.parametrize('data, num, message', [
    (torch.zeros((1, 2, 2)), 3, 'float32'),
    (torch.zeros((2, 2), dtype=torch.uint8), 3, r'\(2, 2\)'),
    ([[1]], 1, 'list'),
    (torch.zeros((1, 2, 2), dtype=torch.uint8), 9, '1 planes for 9 masks; '
     'they take 2'),
    (torch.zeros((1, 2, 2), dtype=torch.uint8), 0, 'take 0'),
])
def test_other_planes_are_refused(data, num, message):
    with pytest.raises(ValueError, match=message):
        PackedMasks(data, num)


@pytest.mark.parametrize('masks, message', [
    (torch.zeros((2, 2)).bool(), r'\(2, 2\)'),
    (torch.zeros((1, 2, 2)), 'threshold soft'),
    (None, 'NoneType'),
])
def test_other_masks_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        PackedMasks.from_bool(masks)


@pytest.fixture(params=['host', 'device'])
def place(request, monkeypatch):
    """Take the way of the CPU, then that of other devices."""
    if request.param == 'device':
        monkeypatch.setattr(packed_masks, '_on_host', lambda values: False)


@pytest.mark.parametrize('size', [(1, 1), (5, 7), (40, 51), (102, 60)])
def test_pixels_are_counted(size, place):
    masks = random_masks(37, *size)
    masks[3], masks[20] = True, False
    masks[5, :-1] = masks[6, :, 1:] = False
    packed = PackedMasks.from_bool(masks)
    areas = masks.flatten(1).sum(1)
    assert packed.area().equal(areas)
    assert count_pixels(masks).equal(areas)
    regions = torch.cat([random_masks(3, *size), masks[20:21], masks[3:4]])
    regions[1, :-1] = False
    shared = (regions[:, None] & masks).flatten(2).sum(2)
    assert packed.intersection(regions).equal(shared)
    assert (packed.most_shared(regions) >= shared).all()
    pairs = torch.rand(shared.shape) < .5
    assert packed.intersection(regions, pairs).equal(shared * pairs)


def test_what_boxes_share_bounds_what_masks_share():
    masks = torch.zeros((3, 6, 8), dtype=torch.bool)
    masks[0, 1, 1] = masks[0, 4, 5] = True
    masks[1, 5, 7] = True
    packed = PackedMasks.from_bool(masks)
    regions = torch.zeros((3, 6, 8), dtype=torch.bool)
    regions[0, 2:6, 2:8] = True
    regions[1, 0, 0] = True
    assert packed.most_shared(regions).tolist() == [[2, 1, 0], [0, 0, 0],
                                                    [0, 0, 0]]
    assert packed._boxes.tolist() == [[1, 1, 6, 5], [7, 5, 8, 6], [0] * 4]


def test_what_is_measured_travels():
    packed = PackedMasks.from_bool(random_masks(9))
    assert packed.measure() is packed
    area = packed.area()
    assert packed.area() is area
    for other in (packed.to('cpu'), packed.pad_to(9, 9),
                  copy.deepcopy(packed)):
        assert other._area.equal(area)
        assert (other._boxes == packed._boxes).all()
    moved = packed.to('meta')
    assert moved._area.device.type == 'meta' and moved._boxes is None


def test_masks_are_united(place):
    masks = random_masks(19)
    packed = PackedMasks.from_bool(masks)
    selected = torch.zeros((4, 19), dtype=torch.bool)
    selected[0, [2, 5, 18]] = True
    selected[1, 7] = True
    selected[3] = True
    united = packed.union(selected)
    assert united.dtype == torch.bool
    for mask, chosen in zip(united, selected):
        assert mask.equal(masks[chosen].any(0))


def test_nothing_is_counted_and_united(place):
    none = PackedMasks.from_bool(random_masks(0))
    assert none.area().shape == (0, )
    regions = random_masks(2)
    assert none.intersection(regions).shape == (2, 0)
    assert none.area().dtype == torch.int64
    assert not none.union(torch.zeros((2, 0), dtype=torch.bool)).any()
    some = PackedMasks.from_bool(random_masks(3))
    assert some.intersection(regions[:0]).shape == (0, 3)
    assert some.union(torch.zeros((0, 3), dtype=torch.bool)).shape == (0, 5,
                                                                       7)
    assert count_pixels(regions[:0]).shape == (0, )
    assert count_pixels(regions[:, :0]).tolist() == [0, 0]
    flat = PackedMasks.from_bool(torch.zeros((3, 0, 4), dtype=torch.bool))
    assert flat.area().tolist() == [0, 0, 0]
