# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Connected pieces of the classes of a label map."""
import pytest
import torch

from mmsemi.pseudo_labels.class_pieces import number_pieces, piece_masks


@pytest.fixture
def label():
    label = torch.zeros(6, 8, dtype=torch.long)
    # Corners connect.
    label[0, 0] = label[1, 1] = label[4, 4] = 2
    label[5, 0:3] = 1
    label[3] = 255
    return label


def test_pieces_of_a_label_map(label):
    pieces, classes = number_pieces(label)
    assert pieces.dtype == torch.long and pieces.shape == (6, 8)
    assert classes == [1, 2, 2]
    assert pieces[pieces >= 0].bincount().tolist() == [3, 2, 1]
    assert pieces[0, 0] == pieces[1, 1] == 1 and pieces[4, 4] == 2
    assert (pieces[label == 255] == -1).all()
    masks = piece_masks(pieces, torch.tensor([2, 0]))
    assert masks.dtype == torch.bool
    assert masks.flatten(1).sum(1).tolist() == [1, 3]


def test_without_background(label):
    pieces, classes = number_pieces(label, None)
    assert classes == [0, 0, 1, 2, 2]
    assert ((pieces == -1) == (label == 255)).all()


def test_small_pieces_get_no_number(label):
    pieces, classes = number_pieces(label, min_area=2)
    assert classes == [1, 2]
    assert pieces[4, 4] == -1 and pieces.max() == 1


def test_nothing_to_number():
    pieces, classes = number_pieces(torch.zeros(6, 8, dtype=torch.long))
    assert classes == [] and (pieces == -1).all()
    assert piece_masks(pieces, torch.arange(0)).shape == (0, 6, 8)
