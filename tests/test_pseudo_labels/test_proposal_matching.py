# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Matching of pseudo-masks with proposals; numbers of the 6 x 6 grid."""
import itertools

import pytest
import torch

from mmsemi.pseudo_labels import (match_proposals, match_proposals_batch,
                                  select_proposals)
from mmsemi.structures import packed_masks
from mmsemi.structures.packed_masks import PackedMasks

# Rows and columns, half open.
RECTANGLES = {
    'A': (1, 5, 1, 4),
    'B': (0, 5, 0, 5),
    'C': (1, 3, 1, 5),
    'D': (1, 5, 2, 6),
    "D'": (1, 5, 0, 4),
    'E': (0, 2, 1, 5),
    'F': (1, 3, 1, 3),
    'G': (0, 6, 0, 6),
    'far': (5, 6, 5, 6),
    'Z': (0, 0, 0, 0),
}


def rectangle(y1, y2, x1, x2, height=6, width=6):
    mask = torch.zeros((height, width), dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


PSEUDO = rectangle(1, 5, 1, 5)


def proposals(*names):
    if not names:
        return torch.zeros((0, 6, 6), dtype=torch.bool)
    return torch.stack([rectangle(*RECTANGLES[name]) for name in names])


def loop(pseudo, masks, strategy, iou_thr=.5, coverage_thr=.7, purity_thr=.7):
    """Do what is asked one proposal at a time, in plain numbers."""
    best, chosen = iou_thr, []
    size = int(pseudo.sum())
    for k, mask in enumerate(masks):
        shared, area = int((pseudo & mask).sum()), int(mask.sum())
        covers = size > 0 and shared / size > coverage_thr
        pure = area > 0 and shared / area > purity_thr
        if strategy == 'iom':
            union = size + area - shared
            if union and shared / union > best:
                best, chosen = shared / union, [k]
        elif dict(cpi=covers or pure, cpi_u=covers, cpi_o=pure)[strategy]:
            chosen.append(k)
    if not chosen:
        return pseudo, False
    return masks[chosen].any(0), True


@pytest.mark.parametrize('names, winner', [
    ('A B C D', 'A'),
    ('B D', 'B'),
    ('C', None),
    ("D D'", 'D'),
    ("D' D", "D'"),
    ('Z', None),
    ('Z A', 'A'),
    ('G', None),
    ('', None),
])
def test_iom_takes_the_best(names, winner):
    mask, matched = match_proposals(PSEUDO, proposals(*names.split()), 'iom')
    assert matched.shape == () and matched.dtype == torch.bool
    assert bool(matched) == (winner is not None)
    assert mask.equal(PSEUDO if winner is None else proposals(winner)[0])


@pytest.mark.parametrize('strategy, names, pixels', [
    ('cpi', 'A', 12),
    ('cpi', 'B', 25),
    ('cpi', 'C', 8),
    ('cpi', 'D', 16),
    ('cpi', 'A B', 25),
    ('cpi', 'C far', 8),
    ('cpi', 'F', 4),
    ('cpi', 'G', 36),
    ('cpi', 'E', None),
    ('cpi', 'Z', None),
    ('cpi', 'far', None),
    ('cpi', '', None),
    ('cpi_u', 'A', 12),
    ('cpi_u', 'B', 25),
    ('cpi_u', 'D', 16),
    ('cpi_u', 'A B', 25),
    ('cpi_u', 'G', 36),
    ('cpi_u', 'C', None),
    ('cpi_u', 'E', None),
    ('cpi_u', 'F', None),
    ('cpi_o', 'A', 12),
    ('cpi_o', 'C', 8),
    ('cpi_o', 'D', 16),
    ('cpi_o', 'F', 4),
    ('cpi_o', 'B', None),
    ('cpi_o', 'E', None),
    ('cpi_o', 'G', None),
])
def test_parts_are_united(strategy, names, pixels):
    masks = proposals(*names.split())
    mask, matched = match_proposals(PSEUDO, masks, strategy)
    assert bool(matched) == (pixels is not None)
    assert int(mask.sum()) == (16 if pixels is None else pixels)
    if pixels is None:
        assert mask.equal(PSEUDO)
    else:
        assert not (mask & ~masks.any(0)).any()


def test_a_threshold_must_be_exceeded():
    pseudo = rectangle(0, 1, 0, 10, 3, 10)
    proposal = torch.zeros_like(pseudo)
    # 7 of 10 pixels and 12 others.
    proposal[0, :7] = proposal[1:, :6] = True
    for strategy in ('cpi', 'cpi_u'):
        assert not match_proposals(pseudo, proposal[None], strategy)[1]
        assert match_proposals(
            pseudo, proposal[None], strategy, coverage_thr=.69)[1]
    # Pure to exactly 7 of 10.
    assert not match_proposals(proposal, pseudo[None], 'cpi_o')[1]
    # An IoU of exactly one half.
    half = proposals('C')
    assert not match_proposals(PSEUDO, half, 'iom')[1]
    assert match_proposals(PSEUDO, half, 'iom', iou_thr=.49)[1]


@pytest.mark.parametrize('size', [10, 20, 30, 70, 90, 110, 130, 230])
def test_quotients_do_not_round_over_the_threshold(size):
    pseudo = torch.zeros((1, size), dtype=torch.bool)
    pseudo[:] = True
    masks = torch.zeros((9, 1, size), dtype=torch.bool)
    for k in range(9):
        masks[k, 0, :size * (k + 1) // 10] = True
    for k, thr in enumerate((.1, .2, .3, .4, .5, .6, .7, .8, .9)):
        selected = select_proposals(
            pseudo[None], masks, 'cpi_u', coverage_thr=thr)
        assert selected.sum() == 8 - k


@pytest.mark.parametrize('strategy', ['iom', 'cpi', 'cpi_u', 'cpi_o'])
def test_an_empty_pseudo_mask_matches_nothing(strategy):
    empty = torch.zeros_like(PSEUDO)
    for names in (('A', 'G'), ('Z', ), ()):
        mask, matched = match_proposals(
            empty, proposals(*names), strategy, 0., 0., 0.)
        assert not matched and not mask.any()


@pytest.mark.parametrize('place', ['host', 'device'])
@pytest.mark.parametrize('strategy', ['iom', 'cpi', 'cpi_u', 'cpi_o'])
def test_many_at_once_are_as_a_loop_has_it(strategy, place, monkeypatch):
    if place == 'device':
        monkeypatch.setattr(packed_masks, '_on_host', lambda values: False)
    generator = torch.Generator().manual_seed(3)

    def rectangles(num):
        first = torch.randint(0, 40, (num, 2), generator=generator)
        size = torch.randint(0, 30, (num, 2), generator=generator)
        return torch.stack([
            rectangle(y, y + h, x, x + w, 48, 48)
            for (y, x), (h, w) in zip(first.tolist(), size.tolist())
        ])

    num_matched = 0
    for _ in range(10):
        pseudos, masks = rectangles(10), rectangles(12)
        packed = PackedMasks.from_bool(masks)
        found, matched = match_proposals_batch(pseudos, packed, strategy)
        again = match_proposals_batch(pseudos.long(), masks, strategy)
        assert again[0].equal(found) and again[1].equal(matched)
        for pseudo, mask, flag in zip(pseudos, found, matched):
            expected, hit = loop(pseudo, masks, strategy)
            assert mask.equal(expected) and bool(flag) == hit
            single = match_proposals(pseudo, packed, strategy)
            assert single[0].equal(mask) and single[1].equal(flag)
        num_matched += int(matched.sum())
    assert 5 < num_matched < 95


@pytest.mark.parametrize('strategy', ['cpi', 'cpi_u', 'cpi_o'])
def test_order_and_copies_do_not_matter(strategy):
    expected = match_proposals(PSEUDO, proposals('A', 'B', 'E'), strategy)[0]
    for names in itertools.permutations(['A', 'B', 'E', 'A']):
        found = match_proposals(PSEUDO, proposals(*names), strategy)[0]
        assert found.equal(expected)


def test_nothing_is_changed_and_nothing_has_a_gradient():
    pseudos, masks = PSEUDO[None].clone(), proposals('A', 'Z')
    before = masks.clone()
    found, _ = match_proposals_batch(pseudos, masks, 'iom')
    found[:] = True
    missed, _ = match_proposals_batch(pseudos, masks[1:], 'iom')
    missed[:] = True
    assert pseudos[0].equal(PSEUDO) and masks.equal(before)
    assert not found.requires_grad


def test_no_pseudo_masks():
    for masks in (proposals('A'), proposals()):
        found, matched = match_proposals_batch(PSEUDO[None][:0], masks, 'cpi')
        assert found.shape == (0, 6, 6) and matched.shape == (0, )


def test_guards_are_off_unless_asked_for():
    # The whole image swallows the object, a part shrinks it.
    whole, part = proposals('G'), proposals('F')
    assert match_proposals(PSEUDO, whole, 'cpi_u')[1]
    for guard in (dict(max_area_ratio=2.2), dict(max_image_share=.9),
                  dict(min_iou=.5)):
        mask, matched = match_proposals(PSEUDO, whole, 'cpi_u', **guard)
        assert not matched and mask.equal(PSEUDO)
    # What equals a limit passes.
    for guard in (dict(max_area_ratio=2.25), dict(max_image_share=1.),
                  dict(min_iou=16 / 36), dict(min_coverage=1.)):
        assert match_proposals(PSEUDO, whole, 'cpi_u', **guard)[1]
    assert match_proposals(PSEUDO, part, 'cpi_o')[1]
    assert match_proposals(PSEUDO, part, 'cpi_o', min_coverage=.25)[1]
    mask, matched = match_proposals(PSEUDO, part, 'cpi_o', min_coverage=.26)
    assert not matched and mask.equal(PSEUDO)
    # A proposal that is left out makes room for the next.
    mask, matched = match_proposals(
        PSEUDO, proposals('B', 'D'), 'iom', max_area_ratio=1.)
    assert matched and mask.equal(proposals('D')[0])


def test_a_guard_judges_each_mask_alone():
    pseudos = torch.stack([PSEUDO, rectangle(1, 3, 1, 3)])
    masks = proposals('F')
    found, matched = match_proposals_batch(
        pseudos, masks, 'cpi_o', min_coverage=.5)
    assert matched.tolist() == [False, True]
    assert found[0].equal(PSEUDO) and found[1].equal(masks[0])


@pytest.mark.parametrize('change, message', [
    (dict(strategy='best'), r"strategy='best'; allowed are \('iom', 'cpi'"),
    (dict(iou_thr=1.5), 'match_proposals.iou_thr=1.5'),
    (dict(coverage_thr=-1), 'coverage_thr=-1'),
    (dict(purity_thr='a'), "purity_thr='a'"),
    (dict(max_area_ratio=0), 'max_area_ratio=0'),
    (dict(max_image_share=2), 'max_image_share=2'),
    (dict(min_coverage=2), 'min_coverage=2'),
    (dict(min_iou=-1), 'min_iou=-1'),
    (dict(pseudos=torch.zeros(1, 6, 6)), 'float32'),
    (dict(pseudos=PSEUDO), r'\(6, 6\)'),
    (dict(pseudos=PSEUDO[None, :4]), r'\(4, 6\) pixels, proposals \(6, 6\)'),
    (dict(proposals=torch.ones(1, 6, 6)), 'threshold soft'),
])
def test_bad_arguments_are_named(change, message):
    arguments = dict(
        pseudos=PSEUDO[None], proposals=proposals('A'), strategy='cpi')
    with pytest.raises(ValueError, match=message):
        match_proposals_batch(**{**arguments, **change})
