# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""TensorMasks must behave as mmdet's BitmapMasks, without the host."""
import copy

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks, mask_target
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mmsemi.structures.tensor_masks import CroppedMasks, TensorMasks


def pair(num=3, height=11, width=14, seed=0):
    """The same random masks in both classes."""
    array = np.random.RandomState(seed).rand(num, height, width) > 0.6
    bitmaps = BitmapMasks(array.astype(np.uint8), height, width)
    return TensorMasks(torch.from_numpy(array)), bitmaps


def assert_equal(ours, theirs):
    assert isinstance(ours, TensorMasks)
    assert ours.masks.dtype == torch.bool
    assert (len(ours), ours.height, ours.width) == (len(theirs),
                                                    theirs.height,
                                                    theirs.width)
    array = ours.to_ndarray()
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, theirs.to_ndarray())


def test_integers_become_bool():
    values = torch.tensor([[[0, 1], [2, 255]]], dtype=torch.uint8)
    masks = TensorMasks(values)
    assert masks.masks.dtype == torch.bool
    assert masks.masks.tolist() == [[[False, True], [True, True]]]
    assert TensorMasks(-values.int()).masks.equal(masks.masks)


def test_bool_masks_are_not_copied():
    values = torch.zeros(2, 3, 4, dtype=torch.bool)
    masks = TensorMasks(values)
    values[0, 0, 0] = True
    assert masks.areas.tolist() == [1, 0]


@pytest.mark.parametrize('bad, message', [
    (torch.zeros(3, 4, dtype=torch.bool), r'Tensor \(3, 4\)'),
    (torch.zeros(1, 1, 3, 4, dtype=torch.bool), r'\(1, 1, 3, 4\)'),
    (np.zeros((1, 3, 4), bool), r'ndarray \(1, 3, 4\)'),
    ([[1, 0]], 'list'),
    (torch.zeros(1, 3, 4), 'float32; threshold'),
])
def test_bad_masks_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        TensorMasks(bad)


def test_simple_properties():
    ours, theirs = pair()
    assert ours.device == torch.device('cpu')
    assert ours.areas.dtype == np.int64
    np.testing.assert_array_equal(ours.areas, theirs.areas)
    for mine, other in zip(ours, theirs):
        np.testing.assert_array_equal(mine.numpy(), other)
    assert repr(ours) == ('TensorMasks(num_masks=3, height=11, width=14, '
                          'device=cpu)')


@pytest.mark.parametrize('index', [
    0,
    -1,
    np.int64(2),
    np.uint8(1),
    slice(None),
    slice(0, 2),
    slice(2, 0),
    slice(0, 3, 2),
    [0, 2, 2],
    [],
    np.array([2, 0]),
    np.array([2, 0], np.uint8),
    np.array([2, 0], np.int32),
    np.array([], np.int64),
    np.array([True, False, True]),
    np.zeros(3, bool),
])
def test_indexing_equals_bitmap_masks(index):
    ours, theirs = pair()
    assert_equal(ours[index], theirs[index])


def test_indexing_with_tensors():
    ours, theirs = pair()
    assert_equal(ours[torch.tensor([2, 0])], theirs[[2, 0]])
    assert_equal(ours[torch.tensor(1)], theirs[1])
    assert_equal(ours[torch.tensor([False, True, True])], theirs[1:])
    assert_equal(ours[torch.zeros(3, dtype=torch.bool)], theirs[3:])


@pytest.mark.parametrize('index', [3, -4, [0, 3], np.array([3])])
def test_indexing_out_of_range(index):
    ours, _ = pair()
    with pytest.raises(IndexError):
        ours[index]


def test_cat():
    first, their_first = pair(2, seed=1)
    second, their_second = pair(0)
    third, their_third = pair(1, seed=2)
    assert_equal(
        TensorMasks.cat([first, second, third]),
        BitmapMasks.cat([their_first, their_second, their_third]))
    with pytest.raises(RuntimeError):
        TensorMasks.cat([first, pair(1, 5, 5)[0]])


@pytest.mark.parametrize('num', [0, 1, 3])
@pytest.mark.parametrize('pad_val', [0, 1])
def test_pad(num, pad_val):
    ours, theirs = pair(num)
    assert_equal(
        ours.pad((13, 20), pad_val=pad_val),
        theirs.pad((13, 20), pad_val=pad_val))
    assert_equal(ours.pad((11, 14)), theirs)


@pytest.mark.parametrize('shape', [(10, 20), (20, 13)])
def test_pad_never_cuts(shape):
    with pytest.raises(ValueError, match='11 x 14'):
        pair()[0].pad(shape)


@pytest.mark.parametrize('bbox', [
    (2, 3, 9, 8), (0, 0, 14, 11), (-3, -2, 5, 4), (6, 6, 40, 40), (3, 4, 3, 4),
    (5, 5, 2, 1)
])
def test_crop(bbox):
    ours, theirs = pair()
    assert_equal(ours.crop(np.array(bbox)), theirs.crop(np.array(bbox)))
    assert_equal(ours.crop(torch.tensor(bbox)), theirs.crop(np.array(bbox)))


@pytest.mark.parametrize('num', [0, 3])
@pytest.mark.parametrize('shape', [(11, 14), (22, 28), (33, 42), (44, 14)])
def test_resize_by_whole_factors_equals_bitmap_masks(num, shape):
    ours, theirs = pair(num)
    assert_equal(ours.resize(shape), theirs.resize(shape))


def test_nearest_resize_reads_pixel_centres():
    mask = torch.tensor([[[0, 1, 0, 1, 1]]], dtype=torch.bool)
    # Centres 0.83, 2.5 and 4.17; OpenCV reads positions 0, 1.67 and 3.33.
    assert TensorMasks(mask).resize((1, 3)).masks.tolist() == [[[0, 0, 1]]]
    theirs = BitmapMasks(mask.numpy().astype(np.uint8), 1, 5).resize((1, 3))
    assert theirs.masks.tolist() == [[[0, 1, 1]]]


def test_bilinear_resize_thresholds_at_one_half():
    mask = torch.tensor([[[0, 1, 1, 1], [0, 0, 0, 1]]], dtype=torch.bool)
    # Means of 2 x 2 blocks are 1/4 and 3/4.
    halved = TensorMasks(mask).resize((1, 2), interpolation='bilinear')
    assert halved.masks.tolist() == [[[False, True]]]
    even = torch.tensor([[[1, 0]]], dtype=torch.bool)
    halved = TensorMasks(even).resize((1, 1), interpolation='bilinear')
    assert halved.masks.tolist() == [[[True]]]


def test_resize_refuses_other_interpolations():
    with pytest.raises(ValueError, match="'bicubic'.*'nearest'"):
        pair()[0].resize((5, 5), interpolation='bicubic')


def boxes_and_inds(num_masks, num=64, seed=3):
    """Boxes in, across and outside of 11 x 14 masks, some degenerate."""
    rng = np.random.RandomState(seed)
    corners = rng.uniform(-6, 20, (num, 2, 2)).astype(np.float32)
    boxes = np.sort(corners, axis=1).reshape(-1, 4)
    boxes[0] = 4
    boxes[1] = (0, 0, 14, 11)
    boxes[2] = (2, 2, 2.01, 9)
    boxes[3] = (5, 5, 6, 6)
    return boxes, rng.randint(0, num_masks, num)


@pytest.mark.parametrize('out_shape', [(7, 7), (28, 28), (5, 9), (1, 1)])
@pytest.mark.parametrize('binarize', [True, False])
def test_crop_and_resize_equals_bitmap_masks_bit_for_bit(out_shape, binarize):
    ours, theirs = pair(4)
    boxes, inds = boxes_and_inds(4)
    crops = ours.crop_and_resize(
        boxes, out_shape, inds, device='cpu', binarize=binarize)
    reference = theirs.crop_and_resize(
        boxes, out_shape, inds, binarize=binarize).to_ndarray()
    assert isinstance(crops, CroppedMasks)
    assert len(crops) == 64
    assert crops.to_ndarray().dtype == (np.uint8 if binarize else np.float32)
    np.testing.assert_array_equal(crops.to_ndarray(), reference)
    # Crops that are all of one value would prove nothing.
    assert 0.05 < reference.mean() < 0.95


def test_crop_and_resize_takes_tensors_one_number_and_one_mask():
    ours, theirs = pair(4)
    boxes, inds = boxes_and_inds(4)
    inds[:] = 2
    crops = ours.crop_and_resize(
        torch.from_numpy(boxes), 7, torch.from_numpy(inds).int())
    np.testing.assert_array_equal(
        crops.to_ndarray(),
        theirs.crop_and_resize(boxes, (7, 7), inds).to_ndarray())


def test_crop_and_resize_is_exact_under_autocast():
    ours, theirs = pair(4)
    boxes, inds = boxes_and_inds(4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        crops = ours.crop_and_resize(boxes, (7, 7), inds, binarize=False)
    np.testing.assert_array_equal(
        crops.to_ndarray(),
        theirs.crop_and_resize(boxes, (7, 7), inds,
                               binarize=False).to_ndarray())


@pytest.mark.parametrize('num_masks, num_boxes', [(0, 0), (0, 2), (3, 0)])
def test_crop_and_resize_of_nothing(num_masks, num_boxes):
    ours, theirs = pair(num_masks)
    boxes = np.ones((num_boxes, 4), np.float32)
    inds = np.zeros(num_boxes, np.int64)
    crops = ours.crop_and_resize(boxes, (5, 6), inds).to_ndarray()
    assert crops.shape == (0, 5, 6)
    assert crops.dtype == np.uint8
    assert theirs.crop_and_resize(boxes, (5, 6),
                                  inds).to_ndarray().shape == (0, 5, 6)


def test_to_tensor():
    ours, theirs = pair()
    for dtype in (torch.bool, torch.uint8, torch.float32, torch.int64):
        mine = ours.to_tensor(dtype=dtype, device='cpu')
        assert mine.dtype == dtype
        assert mine.equal(theirs.to_tensor(dtype=dtype, device='cpu'))


def test_to_keeps_the_values_bool():
    ours, theirs = pair()
    assert_equal(ours.to('cpu'), theirs)
    assert_equal(ours.to(torch.float16), theirs)
    assert ours.to('meta').device == torch.device('meta')


def test_get_bboxes_equals_bitmap_masks():
    ours, theirs = pair(4)
    for masks in (ours.masks, torch.from_numpy(theirs.masks)):
        masks[1] = 0
        masks[2] = 0
        masks[2, 10, 13] = 1
    boxes = ours.get_bboxes()
    reference = theirs.get_bboxes('hbox')
    assert type(boxes) is type(reference)
    assert boxes.tensor.equal(reference.tensor)
    assert boxes.tensor[1].tolist() == [0, 0, 0, 0]
    assert boxes.tensor[2].tolist() == [13, 10, 14, 11]
    assert pair(0)[0].get_bboxes().tensor.shape == (0, 4)


def test_instance_data_can_index_concatenate_and_move():
    ours, theirs = pair()
    instances = InstanceData(masks=ours, labels=torch.arange(3))
    for index in (torch.tensor([True, False, True]),
                  torch.zeros(3, dtype=torch.bool), torch.tensor([2, 0]),
                  np.array([1]), slice(1, 3), 2):
        labels = instances[index].labels.numpy()
        assert_equal(instances[index].masks, theirs[labels])
    both = InstanceData.cat([instances, instances[:1]])
    assert_equal(both.masks, theirs[[0, 1, 2, 0]])
    assert instances.to('meta').masks.device == torch.device('meta')
    assert_equal(copy.deepcopy(instances).masks, theirs)


def test_mmdet_mask_target_is_the_same():
    """What mmdet's RoI heads make of both, for a batch of two images."""
    config = ConfigDict(mask_size=14)
    ours, theirs = zip(pair(3, seed=5), pair(1, seed=6))
    proposals, inds = [], []
    for num_masks in (3, 1):
        boxes, index = boxes_and_inds(num_masks, 20, seed=num_masks)
        proposals.append(torch.from_numpy(boxes))
        inds.append(torch.from_numpy(index))

    def targets(masks):
        return mask_target([p.clone() for p in proposals], inds, masks, config)

    assert targets(ours).shape == (40, 14, 14)
    assert targets(ours).equal(targets(theirs))
    nothing = mask_target([torch.zeros(0, 4)],
                          [torch.zeros(0, dtype=torch.long)], [pair(0)[0]],
                          config)
    assert nothing.shape == (0, 14, 14)


def test_mask_scoring_head_reads_areas_and_crops():
    from mmdet.models.roi_heads.mask_heads import MaskIoUHead
    ours, theirs = pair(2, 30, 30)
    proposals = torch.tensor([[0., 0, 30, 30], [3, 4, 15, 29], [20, 2, 28, 9]])
    inds = torch.tensor([1, 0, 1])
    # The method uses nothing of the head.
    ratio = MaskIoUHead._get_area_ratio(None, proposals, inds, ours)
    assert ratio.equal(
        MaskIoUHead._get_area_ratio(None, proposals, inds, theirs))
    assert ratio[0] == 1 and 0 < ratio[2] < ratio[1] < 1
