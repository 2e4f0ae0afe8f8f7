# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmengine.structures import InstanceData

from mmsemi.pseudo_labels import PseudoLabelPipeline, SharpenSoftLabels


def soft(*rows):
    rows = torch.tensor(rows).reshape(-1, 3)
    return InstanceData(
        scores=rows[:, :2].amax(1),
        labels=rows[:, :2].argmax(1),
        soft_labels=rows)


def test_by_hand():
    given = soft([.6, .3, .1], [0., 1., 0.])
    found, = SharpenSoftLabels(.5)([given], [None])
    # Squares, .36, .09 and .01, add up to .46.
    assert found.soft_labels[0].tolist() == pytest.approx(
        [.36 / .46, .09 / .46, .01 / .46])
    assert found.soft_labels[1].tolist() == [0., 1., 0.]
    # Everything else stays, what is given too.
    assert torch.equal(found.scores, given.scores)
    assert torch.equal(found.labels, given.labels)
    assert given.soft_labels[0].tolist() == pytest.approx([.6, .3, .1])


def test_one_changes_nothing_and_more_flattens():
    given = soft([.6, .3, .1])
    found, = SharpenSoftLabels(1)([given], [None])
    torch.testing.assert_close(found.soft_labels, given.soft_labels)
    found, = SharpenSoftLabels(1e6)([given], [None])
    assert found.soft_labels[0].tolist() == pytest.approx([1 / 3] * 3,
                                                          abs=1e-5)


def test_no_instances():
    found, = SharpenSoftLabels()([soft()], [None])
    assert found.soft_labels.shape == (0, 3)


def test_it_needs_soft_labels():
    stage = dict(type='mmsemi.SharpenSoftLabels', temperature=.4)
    pipeline = PseudoLabelPipeline([stage], ['soft_labels'])
    assert pipeline.stages[0].temperature == .4
    with pytest.raises(ValueError, match="needs \\['soft_labels'\\]"):
        PseudoLabelPipeline([stage], ['scores', 'labels'])


@pytest.mark.parametrize('temperature', [0, -1., float('inf'),
                                         float('nan'), 'cold'])
def test_temperatures_out_of_range(temperature):
    with pytest.raises(ValueError, match='SharpenSoftLabels.temperature='):
        SharpenSoftLabels(temperature)
