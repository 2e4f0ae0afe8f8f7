# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import random

import numpy as np
import pytest
import torch

from mmsemi.datasets.transforms.mix import (BatchMix, BoxMix, ClassMix, CutMix,
                                            HalfBoxMix, MixPlan, box_mask,
                                            class_mask, cutmix_box)
from mmsemi.registry import TRANSFORMS
from mmsemi.structures.dense_pseudo_label import DenseTargets

MIXES = (CutMix, BoxMix, HalfBoxMix, ClassMix)


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    np.random.seed(0)


def make_targets(num=3, size=(12, 16), valid=None, with_prob=False):
    logits = torch.arange(num * 4. * size[0] * size[1]).reshape(
        num, 4, *size).mul(1.1).sin()
    if valid is None:
        valid = torch.ones((num, *size), dtype=torch.bool)
    return DenseTargets.from_logits(logits, valid, with_prob)


# CutMix of UniMatch -------------------------------------------------------


def test_boxes_are_those_of_the_released_code():
    boxes = [cutmix_box(321) for _ in range(6)]
    assert boxes == [
        None, None, (87, 70, 126, 185), (193, 39, 61, 69), None,
        (165, 25, 106, 214)
    ]


def test_square_and_pair_are_one():
    first = [cutmix_box(64) for _ in range(20)]
    random.seed(0)
    np.random.seed(0)
    assert [cutmix_box((64, 64)) for _ in range(20)] == first


def test_statistics_of_the_boxes():
    boxes = [cutmix_box(321) for _ in range(3000)]
    areas = np.array([box[2] * box[3] for box in boxes if box]) / 321**2
    assert 1 - len(areas) / 3000 == pytest.approx(.502, abs=.03)
    assert areas.mean() == pytest.approx(.202, abs=.01)
    assert .016 < areas.min() and areas.max() < .4


def test_boxes_lie_inside_a_wide_image():
    for _ in range(200):
        x, y, w, h = cutmix_box((40, 90), prob=1.)
        assert 0 <= x and x + w <= 90 and 0 <= y and y + h <= 40


@pytest.mark.parametrize('size', [(8, 400), (400, 8), (1, 50), (50, 1)])
def test_very_narrow_images_do_not_hang(size):
    for _ in range(3):
        x, y, w, h = cutmix_box(size, 1., (.4, .4))
        assert x + w <= size[1] and y + h <= size[0] and w >= 1
        assert w * h == pytest.approx(.4 * size[0] * size[1], abs=size[1])


def test_a_box_as_large_as_the_image_does_not_hang():
    assert cutmix_box(200, 1., (1., 1.)) == (0, 0, 200, 200)


def test_probability():
    assert all(cutmix_box(32, prob=1.) for _ in range(50))
    assert not any(cutmix_box(32, prob=0.) for _ in range(50))


def test_cutmix_draws_one_box_per_image():
    plan = CutMix(prob=1., area_range=(.25, .25)).plan(make_targets(50))
    assert plan.take.shape == (50, 12, 16) and plan.take.dtype == torch.bool
    for mask in plan.take:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns
        assert mask.float().mean().item() == pytest.approx(.25, abs=.1)
    assert len({tuple(mask.flatten().tolist()) for mask in plan.take}) > 40
    empty = CutMix(prob=.5).plan(make_targets(200)).take.flatten(1).any(1)
    assert 70 < int(empty.sum()) < 130


# Boxes of CPS and of French et al. ----------------------------------------


def test_masks_are_those_of_the_released_code():
    masks = box_mask(2, (64, 64), rng=np.random.RandomState(0))
    assert masks.dtype == bool and masks.sum((1, 2)).tolist() == [1282, 786]
    expected = np.zeros((2, 64, 64), dtype=bool)
    rectangles = [[(23, 39, 47, 61), (3, 3, 20, 37), (1, 23, 16, 59)],
                  [(30, 37, 56, 58), (47, 27, 63, 57), (19, 31, 42, 55)]]
    for mask, boxes in zip(expected, rectangles):
        for y0, x0, y1, x1 in boxes:
            mask[y0:y1, x0:x1] ^= True
    assert (masks == expected).all()


def test_statistics_of_the_masks():
    cps = box_mask(600, (64, 64)).mean((1, 2))
    assert cps.mean() == pytest.approx(.252, abs=.01)
    assert .05 < cps.min() and cps.max() < .47
    french = box_mask(100, (64, 64), 1, (.5, .5)).mean((1, 2))
    assert french == pytest.approx(np.full(100, .5), abs=.02)


def test_box_mix_takes_all_boxes():
    targets = make_targets(2, (64, 64))
    plan = BoxMix().plan(targets)
    np.random.seed(0)
    np.random.permutation(2)
    assert (plan.take.numpy() == box_mask(2, (64, 64))).all()
    one = BoxMix(num_boxes=1, area_range=(.5, .5)).plan(targets)
    assert one.take.float().mean().item() == pytest.approx(.5, abs=.02)


# Half a box of U2PL -------------------------------------------------------


@pytest.mark.parametrize('size', [(33, 40), (64, 64), (7, 5)])
def test_half_of_the_area_in_one_box(size):
    mix, widths = HalfBoxMix(prob=1.), set()
    for _ in range(60):
        take = mix.plan(make_targets(2, size)).take
        for mask in take:
            rows, columns = int(mask.any(1).sum()), int(mask.any(0).sum())
            assert mask.sum() == rows * columns
            assert abs(rows * columns - size[0] * size[1] / 2) <= columns / 2
            widths.add(columns)
    assert min(widths) >= size[1] // 2 + 1 and max(widths) <= size[1] - 1
    if size == (7, 5):
        assert widths == {3, 4}


@pytest.mark.parametrize('size', [(1, 1), (1, 2), (2, 1), (3, 2), (2, 3)])
def test_half_boxes_of_tiny_images(size):
    for _ in range(10):
        plan = HalfBoxMix(prob=1.).plan(make_targets(2, size))
        assert plan.take.shape == (2, *size)


def test_half_boxes_for_the_whole_batch_or_none_of_it():
    plans = [HalfBoxMix().plan(make_targets(4)) for _ in range(300)]
    mixed = [plan for plan in plans if plan is not None]
    assert 110 < len(mixed) < 190
    assert all(plan.take.flatten(1).any(1).all() for plan in mixed)
    assert not any(HalfBoxMix(prob=0.).plan(make_targets()) for _ in range(9))


# ClassMix -----------------------------------------------------------------


@pytest.mark.parametrize('present, chosen', [((0, 1, 2, 3), 2),
                                             ((0, 1, 2), 1), ((4, ), 0),
                                             ((0, 1, 255), 1), ((255, ), 0)])
def test_half_of_the_classes(present, chosen):
    label = torch.tensor(present).repeat(6).reshape(2, -1)
    for _ in range(10):
        mask = class_mask(label)
        found = set(label[mask].tolist())
        assert len(found) == chosen and 255 not in found
        # All or no pixel of a class.
        assert mask.sum() == sum((label == c).sum() for c in found)


def test_given_classes():
    label = torch.tensor([[0, 1], [2, 255]])
    assert class_mask(label, [2, 1]).tolist() == [[False, True],
                                                  [True, False]]
    assert not class_mask(label, []).any()


def test_class_mix_keeps_its_own_classes():
    targets = make_targets(3)
    plan = ClassMix().plan(targets)
    assert plan.partner.tolist() == [1, 2, 0]
    for label, take in zip(targets.label, plan.take):
        kept, taken = (set(label[m].tolist()) for m in (~take, take))
        assert len(kept) == 2 and not kept & taken


def test_class_mix_does_not_look_at_padding():
    """On the padding is a class that the image does not have."""
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[:, :, 4:] = False
    targets = make_targets(2, (4, 6), valid)
    targets.label[:] = torch.tensor([0, 0, 1, 1, 3, 3])
    for _ in range(10):
        plan = ClassMix().plan(targets)
        assert plan.take[..., 4:].all()
        assert plan.take[..., :4].sum((1, 2)).tolist() == [8, 8]


# Partners -----------------------------------------------------------------


@pytest.mark.parametrize('num', [2, 3, 4, 7])
def test_independent_partners_are_others(num):
    seen = set()
    for _ in range(60):
        partner = CutMix().plan(make_targets(num, (4, 4))).partner
        assert sorted(partner.tolist()) == list(range(num))
        assert (partner != torch.arange(num)).all()
        seen.add(tuple(partner.tolist()))
    assert len(seen) == 1 if num == 2 else len(seen) > 1


@pytest.mark.parametrize('kind, num, expected', [
    ('batch_roll', 3, [1, 2, 0]),
    ('batch_roll', 2, [1, 0]),
    ('batch_flip', 4, [3, 2, 1, 0]),
    ('batch_flip', 3, [2, 1, 0]),
])
@pytest.mark.parametrize('mix', [CutMix, BoxMix, ClassMix])
def test_partners_in_order(mix, kind, num, expected):
    plan = mix(partner=kind).plan(make_targets(num))
    assert plan.partner.tolist() == expected


def test_middle_of_an_odd_batch_stays_as_it_is():
    targets = make_targets(3)
    plan = CutMix(prob=1., partner='batch_flip').plan(targets)
    mixed = plan.mix(targets.confidence)
    assert torch.equal(mixed[1], targets.confidence[1])
    assert not torch.equal(mixed[0], targets.confidence[0])


@pytest.mark.parametrize('mix', MIXES)
def test_a_batch_of_one_has_no_partner(mix):
    assert mix().plan(make_targets(1)) is None


@pytest.mark.parametrize('mix', [CutMix(prob=1.), BoxMix(), ClassMix()])
def test_partners_outside_of_the_batch(mix):
    targets, others = make_targets(1), make_targets(1)
    others.label[:] = 9
    plan = mix.plan(targets, torch.arange(1))
    mixed = plan.mix_targets(targets, others)
    assert torch.equal(mixed.label == 9, plan.take) and plan.take.any()
    assert torch.equal(mixed.label[~plan.take], targets.label[~plan.take])


# Mixing -------------------------------------------------------------------


@pytest.mark.parametrize('with_prob', [False, True])
def test_images_and_targets_are_mixed_alike(with_prob):
    valid = torch.ones(4, 12, 16, dtype=torch.bool)
    valid[0, :, 9:] = False
    targets = make_targets(4, valid=valid, with_prob=with_prob)
    # Images that carry what the targets say.
    images = torch.stack([
        targets.label.double(),
        targets.confidence.double(),
        targets.valid.double()
    ], 1)
    plan = BoxMix().plan(targets)
    mixed, result = plan.mix(images), plan.mix_targets(targets)
    assert torch.equal(mixed[:, 0].long(), result.label)
    assert torch.equal(mixed[:, 1].float(), result.confidence)
    assert torch.equal(mixed[:, 2].bool(), result.valid)
    assert torch.equal(result.weight, result.valid.float())
    for name, value in vars(targets).items():
        other = getattr(result, name)
        assert (value is None) is (other is None)
        assert value is None or other.dtype == value.dtype
    if with_prob:
        assert torch.equal(result.prob.max(1).values, result.confidence)
    for i, (take, partner) in enumerate(zip(plan.take, plan.partner)):
        assert torch.equal(mixed[i][:, take], images[partner][:, take])
        assert torch.equal(mixed[i][:, ~take], images[i][:, ~take])


def test_input_of_mixing_stays_as_it_is():
    targets = make_targets()
    label = targets.label.clone()
    MixPlan(torch.ones(3, 12, 16, dtype=torch.bool),
            torch.tensor([1, 2, 0])).mix_targets(targets)
    assert torch.equal(targets.label, label)


@pytest.mark.parametrize('mix', MIXES)
def test_mixing_is_a_function_of_the_seeds(mix):
    plans = []
    for _ in range(2):
        random.seed(3)
        np.random.seed(3)
        torch.rand(3)
        kwargs = {} if mix in (BoxMix, ClassMix) else dict(prob=1.)
        plans.append(mix(partner='independent', **kwargs).plan(
            make_targets()))
    assert torch.equal(plans[0].take, plans[1].take)
    assert torch.equal(plans[0].partner, plans[1].partner)


# Configs ------------------------------------------------------------------


@pytest.mark.parametrize('mix', MIXES)
def test_built_by_name(mix):
    built = TRANSFORMS.build(dict(type=f'mmsemi.{mix.__name__}'))
    assert type(built) is mix and isinstance(built, BatchMix)


@pytest.mark.parametrize('config, message', [
    (dict(type='CutMix', partner='same'), "CutMix.partner='same'.*batch_flip"),
    (dict(type='CutMix', prob=1.5), 'CutMix.prob=1.5'),
    (dict(type='HalfBoxMix', prob=-.1), 'HalfBoxMix.prob=-0.1'),
    (dict(type='CutMix', area_range=(0., .4)), r'CutMix.area_range=\(0.0'),
    (dict(type='CutMix', area_range=(.5, .4)), 'CutMix.area_range'),
    (dict(type='BoxMix', area_range=(.5, 1.4)), 'BoxMix.area_range'),
    (dict(type='BoxMix', num_boxes=0), 'BoxMix.num_boxes=0'),
    (dict(type='BoxMix', num_boxes=1.), 'BoxMix.num_boxes=1.0'),
])
def test_bad_arguments(config, message):
    config['type'] = f'mmsemi.{config["type"]}'
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(config)


def test_what_is_mixed_is_matched_where_both_are():
    targets = make_targets(3)
    take = torch.zeros((3, 12, 16), dtype=torch.bool)
    plan = MixPlan(take, torch.tensor([1, 2, 0]))
    assert plan.mix_targets(targets).matched is None
    flags = torch.tensor([True, True, False])
    targets = targets.replace(matched=flags)
    assert plan.mix_targets(targets).matched.tolist() == [True, False, False]
    others = targets.replace(matched=~flags)
    found = plan.mix_targets(targets, others)
    assert found.matched.tolist() == [False, True, False]
    classes = torch.stack([flags, ~flags], 1)
    found = plan.mix_targets(targets.replace(matched=classes))
    assert found.matched.tolist() == [[True, False], [False, False],
                                      [False, False]]
