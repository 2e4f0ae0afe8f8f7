# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmengine.config import ConfigDict

from mmsemi.models import FederatedLoss


def test_value_is_the_sum_over_the_classes_that_count():
    """With as many classes as there are, all of them count."""
    logits = torch.tensor([[2., -1., 0.], [0.5, 1., -3.]])
    label = torch.tensor([0, 3])
    loss = FederatedLoss(3)(logits, label)

    def wrong(x):
        return math.log(1 + math.exp(x))

    expected = wrong(-2.) + wrong(-1.) + wrong(0.)
    expected += wrong(.5) + wrong(1.) + wrong(-3.)
    assert float(loss) == pytest.approx(expected / 2)
    assert float(FederatedLoss(3)(
        logits, label, avg_factor=4.)) == pytest.approx(expected / 4)
    assert float(
        FederatedLoss(3, loss_weight=2.)(
            logits, label, reduction_override='sum')) == pytest.approx(
                expected * 2)
    each = FederatedLoss(3)(
        logits, label, torch.tensor([1., 0.]), reduction_override='none')
    assert each.tolist() == pytest.approx(
        [wrong(-2.) + wrong(-1.) + wrong(0.), 0])


def test_classes_that_do_not_count_get_no_gradient():
    logits = torch.randn(4, 20, requires_grad=True)
    label = torch.tensor([3, 20, 7, 3])
    torch.manual_seed(0)
    FederatedLoss(20, num_sampled=5)(logits, label).backward()
    moved = logits.grad.abs().sum(0) > 0
    assert int(moved.sum()) == 5
    assert bool(moved[3]) and bool(moved[7])


def test_all_classes_of_the_batch_count_even_if_they_are_more():
    drawn = FederatedLoss(20, num_sampled=2).draw(torch.arange(6))
    assert drawn.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]
    background = FederatedLoss(20, num_sampled=2).draw(torch.tensor([20]))
    assert int(background.sum()) == 2


def test_draws_go_by_a_power_of_the_number_of_images():
    """Of 0 and 1 next to 2: square roots 1 and 3, none for the fourth."""
    torch.manual_seed(0)
    loss = FederatedLoss(4, class_counts=[1, 9, 4, 0], num_sampled=2)
    drawn = sum(loss.draw(torch.tensor([2])).int() for _ in range(1000))
    assert drawn[2] == 1000 and drawn[3] == 0
    assert float(drawn[0]) / 1000 == pytest.approx(1 / 4, abs=.06)
    assert int(drawn[0] + drawn[1]) == 1000
    even = FederatedLoss(4, [1, 9, 4, 0], num_sampled=2, power=0.)
    drawn = sum(even.draw(torch.tensor([2])).int() for _ in range(1000))
    assert float(drawn[0]) / 1000 == pytest.approx(1 / 2, abs=.06)
    assert drawn[3] == 0
    # More than there are with images.
    most = FederatedLoss(4, [1, 9, 4, 0], num_sampled=4)
    assert most.draw(torch.tensor([4])).tolist() == [True] * 3 + [False]


@pytest.mark.parametrize('wrapped', [True, False])
def test_counts_come_from_a_file_when_they_are_needed(tmp_path, wrapped):
    path = tmp_path / 'categories.json'
    loss = FederatedLoss(3, class_counts=str(path), num_sampled=1)
    with pytest.raises(FileNotFoundError):
        loss.draw(torch.tensor([3]))
    content = [dict(id=i, image_count=n) for i, n in ((1, 0), (2, 5), (3, 0))]
    path.write_text(
        json.dumps(dict(categories=content) if wrapped else content))
    assert loss.draw(torch.tensor([3])).tolist() == [False, True, False]


def test_box_head_learns_and_predicts_with_it():
    head = Shared2FCBBoxHead(
        in_channels=4,
        fc_out_channels=8,
        roi_feat_size=2,
        num_classes=6,
        loss_cls=dict(
            type='mmsemi.FederatedLoss', num_classes=6, num_sampled=3))
    cls_score, bbox_pred = head(torch.randn(5, 4, 2, 2))
    assert cls_score.shape == (5, 6)
    rois = torch.tensor([[0., 0, 0, 20, 20]]).repeat(5, 1)
    labels = torch.tensor([1, 6, 6, 2, 6])
    losses = head.loss(cls_score, bbox_pred, rois, labels, torch.ones(5),
                       torch.zeros(5, 4), torch.ones(5, 4))
    losses['loss_cls'].backward()
    assert head.fc_cls.weight.grad.abs().sum(1).count_nonzero() == 3
    assert 0 <= float(losses['acc']) <= 100
    found, = head.predict_by_feat((rois, ), (cls_score.detach(), ),
                                  (bbox_pred.detach(), ),
                                  [dict(img_shape=(32, 32))],
                                  ConfigDict(
                                      score_thr=0.,
                                      nms=dict(type='nms', iou_threshold=1.),
                                      max_per_img=100))
    assert len(found) == 30
    assert float(found.scores[0]) == pytest.approx(
        float(cls_score.sigmoid().max()))


def test_activation_and_accuracy():
    loss = FederatedLoss(2)
    logits = torch.tensor([[0., 2.], [1., -1.], [3., 0.]])
    scores = loss.get_activation(logits)
    assert torch.equal(scores[:, :2], logits.sigmoid())
    assert scores[:, 2].tolist() == [0, 0, 0]
    accuracy = loss.get_accuracy(logits, torch.tensor([1, 1, 2]))['acc']
    assert float(accuracy) == 50
    assert float(loss.get_accuracy(logits, torch.full((3, ), 2))['acc']) == 0


def test_no_sample_is_no_error():
    logits = torch.zeros((0, 3), requires_grad=True)
    loss = FederatedLoss(3)(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert float(loss) == 0


def test_half_precision_is_as_good():
    logits = torch.randn(3, 4)
    label = torch.tensor([0, 4, 2])
    half = FederatedLoss(4)(logits.bfloat16(), label)
    full = F.binary_cross_entropy_with_logits(
        logits.bfloat16().float(),
        F.one_hot(label, 5)[:, :4].float(),
        reduction='sum') / 3
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(full))


@pytest.mark.parametrize(
    'kwargs, text',
    [(dict(num_classes=0), 'num_classes=0'),
     (dict(num_classes=3, num_sampled=0), 'num_sampled=0'),
     (dict(num_classes=3, power=-1), 'power=-1'),
     (dict(num_classes=3, class_counts=[1, 2]), 'each of the 3 classes'),
     (dict(num_classes=2, class_counts=[0, 0]), 'not all 0')])
def test_arguments_out_of_range_are_refused(kwargs, text):
    with pytest.raises(ValueError, match=text):
        FederatedLoss(**kwargs)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match='the head has 4 classes'):
        FederatedLoss(3).get_cls_channels(4)
    with pytest.raises(ValueError, match='reduction_override'):
        FederatedLoss(3)(
            torch.zeros(1, 3), torch.tensor([0]), reduction_override='max')
    path = tmp_path / 'coco.json'
    path.write_text(json.dumps([dict(id=1)]))
    with pytest.raises(ValueError, match='without image_count'):
        FederatedLoss(1, str(path)).draw(torch.tensor([0]))
