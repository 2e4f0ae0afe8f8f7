# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import math

import pytest
import torch

from mmsemi.models.label_smoothing import (SimilarityLabelSmoothing,
                                           concave_strength, power_strength)

SIMILARITY = torch.tensor([[1., .8, 0.], [.8, 1., .6], [0., .6, 1.]])
COUNTS = torch.tensor([1000, 100, 1])


def make(similarity=SIMILARITY, counts=COUNTS, **settings):
    module = SimilarityLabelSmoothing(len(counts), **settings)
    module.set_statistics(similarity, counts)
    return module


def rows(tensor):
    return [pytest.approx(row, abs=1e-6) for row in tensor]


# Reference values ----------------------------------------------------------


@pytest.mark.parametrize('settings, expected', [
    (dict(), [[0, .999665, .000335], [.880797, 0, .119203],
              [.002473, .997527, 0]]),
    (dict(temperature=.5), [[0, .832018, .167982], [.598688, 0, .401312],
                            [.231475, .768525, 0]]),
    (dict(temperature=math.inf), [[0, .5, .5], [.5, 0, .5], [.5, .5, 0]]),
    (dict(kernel='relu'), [[0, 1, 0], [.571429, 0, .428571], [0, 1, 0]]),
    (dict(kernel='uniform'), [[0, .5, .5], [.5, 0, .5], [.5, .5, 0]]),
    (dict(topk=1), [[0, 1, 0], [1, 0, 0], [0, 1, 0]]),
])
def test_neighbours(settings, expected):
    assert make(**settings).neighbours().tolist() == rows(expected)


def test_strength():
    assert make().strength().tolist() == pytest.approx([.056234, .1, .3],
                                                       abs=1e-6)
    assert make(eps_max=1.).strength()[2].item() == pytest.approx(
        .316228, abs=1e-6)
    counts = torch.tensor([1, 10, 100, 1000, 10000, 50000])
    assert power_strength(counts).tolist() == pytest.approx(
        [.3, .177828, .1, .056234, .031623, .021147], abs=1e-6)


def test_table():
    assert make().table.tolist() == rows([
        [.943766, .056215, .000019, 0.],
        [.088080, .9, .011920, 0.],
        [.000742, .299258, .7, 0.],
        [0., 0., 0., 1.],
    ])


def test_concave_strength():
    counts = torch.tensor([100, 50, 1])
    expected = pytest.approx([.3, .210442, 0], abs=1e-6)
    assert concave_strength(counts, .3, 0.).tolist() == expected
    module = make(counts=counts, kernel='uniform', concave=(.3, 0.))
    assert module.strength().tolist() == expected
    assert module.table[0].tolist() == pytest.approx([.7, .15, .15, 0.])
    # Classes of equal size are all the rarest.
    assert concave_strength(torch.tensor([5, 5]), .3, .1).tolist() == [.1, .1]


# Limits --------------------------------------------------------------------


@pytest.mark.parametrize('kernel', ['softmax', 'relu', 'uniform'])
def test_rows_sum_to_one(kernel):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn((12, 3), generator=generator)
    points = torch.nn.functional.normalize(points, dim=1)
    counts = torch.randint(0, 2000, (12, ), generator=generator)
    counts[3] = 0
    table = make(points @ points.t(), counts, kernel=kernel).table
    torch.testing.assert_close(table.sum(1), torch.ones(13))
    assert (table >= 0).all()
    assert table[-1].tolist() == [0.] * 12 + [1.]
    assert (table[:-1, -1] == 0).all()


def test_no_strength_is_one_hot():
    table = make(eps_0=0.).table
    assert torch.equal(table, torch.eye(4))


def test_sign_of_gamma():
    assert make(gamma=0.).strength().tolist() == pytest.approx([.1] * 3)
    rare_more, rare_less = (make(gamma=g).strength() for g in (.25, -.25))
    assert rare_more[2] > rare_more[1] > rare_more[0]
    assert rare_less[2] < rare_less[1] < rare_less[0]
    assert rare_less.tolist() == pytest.approx([.177828, .1, .031623],
                                               abs=1e-6)


def test_class_without_instances():
    """It spreads its own mass evenly and gets none of the others'."""
    similarity = SIMILARITY.clone()
    similarity[2] = similarity[:, 2] = 0
    module = make(similarity, torch.tensor([10, 5, 0]))
    neighbours = module.neighbours()
    assert neighbours[:2].tolist() == [[0, 1, 0], [1, 0, 0]]
    assert neighbours[2].tolist() == [.5, .5, 0]
    # Even if every other is unlike.
    similarity[0, 1] = similarity[1, 0] = -.5
    module = make(similarity, torch.tensor([10, 5, 0]), kernel='relu')
    assert module.neighbours()[:2].tolist() == [[0, 1, 0], [1, 0, 0]]
    # And the only class with instances has nobody better.
    module = make(similarity, torch.tensor([10, 0, 0]))
    assert module.neighbours()[0].tolist() == [0, .5, .5]
    assert torch.isfinite(module.table).all()


def test_single_class():
    module = make(torch.ones(1, 1), torch.tensor([7]))
    assert torch.equal(module.table, torch.eye(2))
    assert module(torch.tensor([0, 1])).tolist() == [[1., 0.], [0., 1.]]


def test_topk_is_for_many_classes():
    assert SimilarityLabelSmoothing(100).topk is None
    assert SimilarityLabelSmoothing(101, kernel='uniform').topk is None
    assert SimilarityLabelSmoothing(101, topk=101).topk == 101
    number = 101
    similarity = 1 - torch.rand(
        (number, number), generator=torch.Generator().manual_seed(0)) / 10
    module = make(similarity, torch.full((number, ), 10))
    neighbours = module.neighbours()
    assert (neighbours > 0).sum(1).tolist() == [20] * number
    for row, shares in enumerate(neighbours):
        best = similarity[row].index_fill(0, torch.tensor(row), -1).topk(20)
        assert (shares[best.indices] > 0).all()


def test_shape_of_labels_is_kept():
    module = make()
    label = torch.tensor([[0, 3, 2], [1, 1, 0]])
    target = module(label)
    assert target.shape == (2, 3, 4) and target.dtype == torch.float32
    assert torch.equal(target[0, 2], module.table[2])


# State ---------------------------------------------------------------------


def test_without_statistics():
    module = SimilarityLabelSmoothing(3)
    assert not module.has_statistics
    with pytest.raises(RuntimeError, match='ClassPrototypeHook'):
        module(torch.tensor([0]))
    # An untrained checkpoint changes nothing.
    module.load_state_dict(SimilarityLabelSmoothing(3).state_dict())
    assert not module.has_statistics


def test_checkpoint_brings_the_same_bits(tmp_path):
    torch.manual_seed(0)
    module = make(torch.rand(3, 3).double(), COUNTS)
    torch.save(module.state_dict(), tmp_path / 'table.pth')
    other = SimilarityLabelSmoothing(3)
    other.load_state_dict(
        torch.load(tmp_path / 'table.pth', weights_only=True))
    assert other.has_statistics
    assert torch.equal(other.table, module.table)
    assert torch.equal(other.counts, COUNTS)
    # Changed settings hold after a resume as well.
    softer = SimilarityLabelSmoothing(3, temperature=.5)
    softer.load_state_dict(module.state_dict())
    assert not torch.equal(softer.table, module.table)
    assert torch.equal(softer.similarity, module.similarity)


def test_checkpoint_of_another_number_of_classes():
    other = SimilarityLabelSmoothing(4)
    with pytest.raises(RuntimeError, match='size mismatch'):
        other.load_state_dict(make().state_dict())
    assert not other.has_statistics


def test_copied_buffers_are_enough():
    """Averages of models copy buffers and load nothing."""
    module, other = make(), SimilarityLabelSmoothing(3)
    for mine, theirs in zip(other.buffers(), module.buffers()):
        mine.copy_(theirs)
    assert torch.equal(other(torch.tensor([2])), module(torch.tensor([2])))
    assert torch.equal(copy.deepcopy(module).table, module.table)


@pytest.mark.parametrize('similarity, counts, message', [
    (torch.eye(2), COUNTS, r'\(2, 2\)'),
    (SIMILARITY, COUNTS[:2], r'\(2,\)'),
    (SIMILARITY * torch.nan, COUNTS, 'no number'),
    (SIMILARITY, COUNTS * 0, 'at least one class'),
    (SIMILARITY, COUNTS - 500, 'at least one class'),
])
def test_wrong_statistics(similarity, counts, message):
    module = SimilarityLabelSmoothing(3)
    with pytest.raises(ValueError, match=message):
        module.set_statistics(similarity, counts)
    assert not module.has_statistics


@pytest.mark.parametrize('settings', [
    dict(num_classes=0),
    dict(kernel='cosine'),
    dict(temperature=0.),
    dict(kernel='relu', temperature=.1),
    dict(topk=0),
    dict(kernel='uniform', topk=3),
    dict(eps_0=-.1),
    dict(eps_max=1.1),
    dict(n_ref=0),
    dict(concave=(.3, )),
    dict(concave=(1.3, 0.)),
])
def test_wrong_settings(settings):
    field = list(settings)[-1]
    with pytest.raises(ValueError, match=f'SimilarityLabelSmoothing.{field}'):
        SimilarityLabelSmoothing(**{**dict(num_classes=3), **settings})
