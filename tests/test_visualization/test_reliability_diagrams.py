# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from mmsemi.pseudo_labels import collect_statistics
from mmsemi.visualization import draw_reliability_diagrams
from mmsemi.visualization import reliability_diagrams as diagrams

# Over-confident predictions of class 0, under-confident ones of class 1.
SCORES = torch.tensor([.95, .90, .85, .75, .65, .35, .45, .55, .30])
OUTCOMES = torch.tensor([1, 0, 1, 0, 0, 1, 1, 1, 0])
LABELS = torch.tensor([0] * 5 + [1] * 4)
DATA = collect_statistics(SCORES, LABELS, OUTCOMES, 3, 5)


@pytest.fixture
def axes():
    return Figure().subplots(2)


def bars(axes):
    """Return the bottom and top of every bar."""
    return [(bar.get_y(), bar.get_y() + bar.get_height())
            for bar in axes.patches]


def test_bars_and_numbers(axes):
    diagrams._draw_diagram(*axes, 'rare', DATA[:1])
    # Outcomes 0 and 2/3 at mean confidence .7 and .9.
    assert np.allclose(
        bars(axes[0]), [(0, 0), (0, 2 / 3), (0, .7), (2 / 3, .9)])
    centres = [bar.get_x() + bar.get_width() / 2 for bar in axes[0].patches]
    assert np.allclose(centres, [.7, .9, .7, .9])
    assert axes[0].texts[0].get_text() == (
        '1 of 1 classes\nerror 0.420\nsigned -0.420')
    assert axes[0].get_title() == 'rare (5)'
    assert np.allclose([top for _, top in bars(axes[1])], [0, 0, 0, .4, .6])


def test_classes_are_pooled_in_bars_and_averaged_in_numbers(axes):
    diagrams._draw_diagram(*axes, 'all', DATA)
    assert axes[0].texts[0].get_text() == (
        '2 of 3 classes\nerror 0.379\nsigned -0.041')
    assert axes[0].get_title() == 'all (9)'
    # Where outcomes are more frequent, what is missing hangs below.
    assert np.allclose(bars(axes[0])[4:6], [(.5, .325), (1., .5)])


def test_a_group_without_predictions(axes):
    diagrams._draw_diagram(*axes, 'none', DATA[2:])
    assert len(axes[0].patches) == 0
    assert axes[0].texts[0].get_text() == '0 of 1 classes'
    assert all(top == 0 for _, top in bars(axes[1]))


def test_a_diagram_for_each_group():
    names = [
        (name, mask.tolist())
        for name, mask in diagrams._members(3, [0, 2, 2], ('r', 'c', 'f'))
    ]
    assert names == [('all', [True] * 3), ('r', [True, False, False]),
                     ('c', [False] * 3), ('f', [False, True, True])]
    assert [name for name, _ in diagrams._members(3, [0, 1, 1], None)] == [
        'all', '0', '1'
    ]


def test_the_picture_grows_with_groups(tmp_path):
    single = draw_reliability_diagrams(DATA)
    assert single.dtype == np.uint8 and single.ndim == 3
    path = tmp_path / 'new' / 'groups.png'
    groups = draw_reliability_diagrams(
        DATA, [0, 1, 1], ('r', 'c'), title='teacher', path=path)
    assert groups.shape[1] > 2.5 * single.shape[1]
    written = cv2.imread(str(path))
    # The file is finer than what is returned.
    assert written.shape[1] > groups.shape[1]
    draw_reliability_diagrams(
        DATA, torch.tensor([0, 1, 1]), path=tmp_path / 'groups.svg')
    text = (tmp_path / 'groups.svg').read_text()
    assert text.startswith('<?xml')


def test_nothing_measured():
    picture = draw_reliability_diagrams(torch.zeros(2, 5, 3), [0, 1])
    assert picture.min() < 255
