# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import math

import pytest
import torch

from mmsemi.pseudo_labels import RefinementCounts, count_refinements


def line(*pixels):
    mask = torch.zeros((1, 6), dtype=torch.uint8)
    mask[0, list(pixels)] = 1
    return mask


TRUTH = line(1, 2, 3)


def test_masks_are_counted_by_what_became_of_them():
    before = torch.stack([line(1), line(1, 2, 3), line(1), line(4), line(1)])
    after = torch.stack(
        [line(1, 2), line(1, 2), line(1), line(5), line(1, 2)])
    truth = TRUTH.expand(5, -1, -1)
    counts = count_refinements(before, after, truth)
    assert counts == RefinementCounts(better=2, worse=1, same=1, unmatched=1)
    assert counts.total == 5 and counts.precision == 2 / 3
    matched = torch.tensor([True, True, True, True, False])
    counts = count_refinements(before, after, truth, matched)
    assert counts == RefinementCounts(better=1, worse=1, same=2, unmatched=1)
    assert counts + counts == RefinementCounts(2, 2, 4, 2)


def test_one_mask_and_pixels_that_do_not_count():
    truth = TRUTH.clone()
    truth[0, 4] = 255
    before, after = line(1, 2, 3), line(1, 2, 3, 4)
    assert count_refinements(before, after, TRUTH).worse == 1
    counts = count_refinements(before, after, truth)
    assert counts == RefinementCounts(same=1)
    assert math.isnan(counts.precision)
    matched = torch.tensor(False)
    assert count_refinements(before, after, truth, matched).unmatched == 1


def test_an_empty_truth_and_no_masks():
    empty = line()
    assert count_refinements(line(1), empty, empty).same == 1
    assert count_refinements(empty[None][:0], empty[None][:0],
                             empty[None][:0]).total == 0


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r'\(1, 6\), \(1, 6\) and \(1, 5\)'):
        count_refinements(TRUTH, TRUTH, TRUTH[:, :5])
