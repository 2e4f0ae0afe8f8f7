# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict

TEST_CFG = ConfigDict(panoptic_on=False, instance_on=True, max_per_image=7)
#: C = 2: kept, kept though unlikely, no object, kept.
CLASSES = torch.tensor([[3., 0., 0.], [.5, 0., 0.], [0., 0., 3.], [0., 4.,
                                                                   0.]])


def build(num_things=2, num_stuff=0, emit=True):
    head = MODELS.build(
        dict(
            type='mmsemi.QueryFusionHead',
            num_things_classes=num_things,
            num_stuff_classes=num_stuff,
            test_cfg=TEST_CFG))
    assert head.emit_soft_labels is False
    head.emit_soft_labels = emit
    return head


@pytest.fixture
def masks():
    masks = torch.full((4, 6, 8), -4.)
    masks[0, 1:3, 2:5] = 2.
    masks[1, 4:, 6:] = torch.tensor([1., 3.])
    masks[2] = 4.
    return masks


def test_one_label_per_query(masks):
    found = build().instance_postprocess(CLASSES, masks)
    assert found.labels.tolist() == [0, 0, 1]
    assert found.scores.tolist() == pytest.approx([.909443, .451863, .964663],
                                                  abs=1e-6)
    torch.testing.assert_close(found.soft_labels,
                               CLASSES[[0, 1, 3]].softmax(1))
    assert torch.equal(found.masks, masks[[0, 1, 3]] > 0)
    assert found.bboxes.tolist() == [[2, 1, 5, 3], [6, 4, 8, 6], [0] * 4]
    # The mean probability inside, nothing for an empty mask.
    inside = torch.tensor([1., 2., 3.]).sigmoid()
    assert found.mask_scores.tolist() == pytest.approx(
        [inside[1].item(), (inside[0] + inside[2]).item() / 2, 0.])


def test_one_half_is_not_inside():
    masks = torch.zeros(1, 2, 2)
    masks[0, 0, 0] = 1e-3
    found = build().instance_postprocess(CLASSES[:1], masks)
    assert found.masks.sum() == 1


def test_stuff_is_no_instance(masks):
    found = build(num_things=1, num_stuff=1).instance_postprocess(
        CLASSES, masks)
    assert found.labels.tolist() == [0, 0]
    assert found.soft_labels.shape == (2, 3)


def test_no_instance(masks):
    classes = torch.tensor([[0., 0., 3.]]).repeat(4, 1)
    found = build().instance_postprocess(classes, masks)
    assert found.soft_labels.shape == (0, 3)
    assert found.masks.shape == (0, 6, 8) and found.bboxes.shape == (0, 4)
    assert found.scores.shape == found.mask_scores.shape == (0, )


def test_half_precision(masks):
    found = build().instance_postprocess(CLASSES.bfloat16(), masks.bfloat16())
    assert found.labels.tolist() == [0, 0, 1]
    for field in ('soft_labels', 'scores', 'mask_scores'):
        assert found[field].dtype == torch.float32
    torch.testing.assert_close(found.soft_labels.sum(1), torch.ones(3))


def test_evaluation_is_mmdets(masks):
    theirs = MaskFormerFusionHead(2, 0, test_cfg=TEST_CFG)
    expected = theirs.instance_postprocess(CLASSES, masks)
    found = build(emit=False).instance_postprocess(CLASSES, masks)
    assert set(found.keys()) == set(expected.keys())
    for field in expected.keys():
        assert torch.equal(found[field], expected[field])


def test_padding_is_cut_off(masks):
    sample = DetDataSample(
        metainfo=dict(img_shape=(5, 7), ori_shape=(10, 14)))
    for rescale, shape in ((False, (5, 7)), (True, (10, 14))):
        result, = build().predict(
            CLASSES[None], masks[None], [sample], rescale=rescale)
        found = result['ins_results']
        assert found.masks.shape == (3, *shape)
        assert found.soft_labels.shape == (3, 3)
