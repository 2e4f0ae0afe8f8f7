# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement

from mmsemi.models.losses import LossNormalizer, dense_cross_entropy
from mmsemi.pseudo_labels import (KeepAboveAdaptiveThreshold,
                                  KeepAboveClassThresholds,
                                  KeepConfidentPixels, KeepLowEntropyPixels,
                                  PseudoLabelPipeline)
from mmsemi.pseudo_labels.pixel_filters import mean_class_maximum, percentile
from mmsemi.structures.dense_pseudo_label import DenseTargets

FIELDS = ('label', 'confidence', 'weight', 'valid', 'prob')


def wave(shape, phase, amp=3.):
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (amp * torch.sin(1.1 * index + phase)).reshape(shape)


def row(confidence, label=None, weight=None, valid=None):
    """Pixels of one image in a row."""
    confidence = torch.tensor([[confidence]])
    shape = confidence.shape
    label = torch.zeros(shape).long() if label is None else \
        torch.tensor([[label]])
    weight = torch.ones(shape) if weight is None else torch.tensor([[weight]])
    valid = torch.ones(shape).bool() if valid is None else \
        torch.tensor([[valid]])
    return DenseTargets(label, confidence, weight, valid)


def weights_after(stage, targets):
    samples = [BaseDataElement()] * len(targets.label)
    found = stage(targets.unbind(), samples)
    return DenseTargets.from_pseudo_labels(found).weight[0, 0].tolist()


# Fixed thresholds ---------------------------------------------------------


def test_at_least_as_confident():
    stage = KeepConfidentPixels(.75)
    assert weights_after(stage, row([.5, .75, .8])) == [0., 1., 1.]


def test_default_threshold_in_single_precision():
    stage = KeepConfidentPixels()
    assert weights_after(stage, row([.95, .9499])) == [1., 0.]


def test_weights_are_lowered_not_set():
    stage = KeepConfidentPixels(.5)
    targets = row([.9, .9, .1], weight=[.25, 0., 1.])
    assert weights_after(stage, targets) == [.25, 0., 0.]
    # What went in stays as it is.
    assert targets.weight.tolist() == [[[.25, 0., 1.]]]


@pytest.mark.parametrize('thresholds', [[.2, .6], {1: .6, 0: .2}])
def test_thresholds_of_classes(thresholds):
    stage = KeepConfidentPixels(.9, class_conf_thr=thresholds)
    targets = row([.3, .3, .7, .7, .95, .95], label=[0, 1, 1, 2, 2, 250])
    assert weights_after(stage, targets) == [1., 0., 1., 0., 1., 1.]


def test_gap_between_named_classes():
    stage = KeepConfidentPixels(.5, class_conf_thr={2: .9})
    targets = row([.6, .6, .6, .6], label=[0, 1, 2, 3])
    assert weights_after(stage, targets) == [1., 1., 0., 1.]


@pytest.mark.parametrize('kwargs, message', [
    (dict(conf_thr=1.1), 'KeepConfidentPixels.conf_thr'),
    (dict(class_conf_thr=[.5, -1]), r'class_conf_thr\[1\]'),
    (dict(class_conf_thr={-1: .5}), 'class index -1'),
    (dict(class_conf_thr={'car': .5}), "class index 'car'"),
])
def test_bad_thresholds(kwargs, message):
    with pytest.raises(ValueError, match=message):
        KeepConfidentPixels(**kwargs)


def test_fixed_thresholds_are_no_state():
    assert KeepConfidentPixels(class_conf_thr=[.5]).state_dict() == {}


# Thresholds set from outside ----------------------------------------------


def test_thresholds_move():
    stage = KeepAboveClassThresholds(.8)
    targets = row([.7, .7, .85], label=[0, 1, 5])
    assert weights_after(stage, targets) == [0., 0., 1.]
    stage.move_thresholds(torch.tensor([.6, .9]))
    assert stage.thresholds[:3].tolist() == pytest.approx([.6, .9, .8])
    assert weights_after(stage, targets) == [1., 0., 1.]
    stage.move_thresholds(torch.tensor([1., .5], dtype=torch.float64), .25)
    assert stage.thresholds[:3].tolist() == pytest.approx([.7, .8, .8])


def test_thresholds_of_classes_are_state():
    stage, other = KeepAboveClassThresholds(), KeepAboveClassThresholds()
    stage.move_thresholds(torch.tensor([.5, .6, .7]))
    assert not torch.equal(stage.thresholds, other.thresholds)
    other.load_state_dict(stage.state_dict())
    assert torch.equal(stage.thresholds, other.thresholds)


def test_bad_initial_threshold():
    with pytest.raises(ValueError, match='KeepAboveClassThresholds.initial'):
        KeepAboveClassThresholds(2.)


# Entropy ------------------------------------------------------------------


@pytest.mark.parametrize('drop_percent, loss, kept, limit', [
    (20., .88338748, 14, 1.05244372),
    (10., .90046160, 16, 1.08609391),
    (0., .98734056, 17, None),
])
def test_entropy_reference_values(drop_percent, loss, kept, limit):
    student, teacher = (wave((2, 4, 3, 3), .9), wave((2, 4, 3, 3), .2, 2.))
    valid = torch.ones(2, 3, 3, dtype=torch.bool)
    targets = DenseTargets.from_logits(teacher, valid, True)
    stage = KeepLowEntropyPixels(80, drop_percent)
    weight = targets.weight * stage.keep(targets)
    assert weight.sum() == kept
    found = dense_cross_entropy(student, targets.label, weight, valid,
                                LossNormalizer.KEPT_RESCALED)
    assert found.item() == pytest.approx(loss, abs=1e-7)
    entropy = -(targets.prob * (targets.prob + 1e-10).log()).sum(1)
    found = percentile(entropy.flatten(), stage.kept_percent)
    assert found.item() == pytest.approx(
        np.percentile(entropy.numpy(), 100 - drop_percent), abs=1e-12)
    if limit is not None:
        assert found.item() == pytest.approx(limit, abs=1e-7)


@pytest.mark.parametrize('epoch, kept', [(0, 80.), (40, 90.), (79, 99.75),
                                         (80, 100.), (200, 100.)])
def test_entropy_schedule(epoch, kept):
    stage = KeepLowEntropyPixels(num_steps=80 * 500)
    stage.step = epoch * 500
    assert stage.kept_percent == pytest.approx(kept, abs=1e-12)


def test_pipeline_hands_the_step_on():
    pipeline = PseudoLabelPipeline(
        [dict(type='mmsemi.KeepLowEntropyPixels', num_steps=4)], FIELDS)
    targets = DenseTargets.from_logits(
        wave((1, 4, 10, 10), .2, 2.), torch.ones(1, 10, 10).bool(), True)
    kept = [
        float(pipeline(targets.unbind(), [], step)[0].weight.sum())
        for step in (0, 2, 4)
    ]
    assert kept == [80., 90., 99.]
    assert pipeline.needs('prob') and not pipeline.needs('masks')


def test_padding_has_no_say_in_the_percentile():
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[:, :, 2:] = False
    logits = wave((1, 4, 4, 4), .2, 2.)
    logits[..., 2:] = 0  # as uncertain as can be
    stage = KeepLowEntropyPixels(10, 50.)
    keep = stage.keep(DenseTargets.from_logits(logits, valid, True))
    assert (keep & valid).sum() == 4
    padding = DenseTargets.from_logits(logits, valid & ~valid, True)
    assert not stage.keep(padding).any()


def test_probabilities_must_be_there():
    with pytest.raises(ValueError, match=r"KeepLowEntropyPixels\) needs \['p"):
        PseudoLabelPipeline(
            [dict(type='mmsemi.KeepLowEntropyPixels', num_steps=1)],
            FIELDS[:-1])


@pytest.mark.parametrize('kwargs', [
    dict(num_steps=0),
    dict(num_steps=1.5),
    dict(num_steps=1, drop_percent=101),
    dict(num_steps=1, drop_percent=-1)
])
def test_bad_schedule(kwargs):
    with pytest.raises(ValueError, match='KeepLowEntropyPixels'):
        KeepLowEntropyPixels(**kwargs)


@pytest.mark.parametrize('percent', [0, 12.5, 80, 99.75, 100])
@pytest.mark.parametrize('num', [1, 2, 7, 100])
def test_percentile_is_that_of_numpy(percent, num):
    values = wave((num, ), .3)
    assert percentile(values, percent).item() == pytest.approx(
        np.percentile(values.numpy(), percent), abs=1e-12)


# A threshold that follows the teacher -------------------------------------


def adaptive_targets():
    return DenseTargets.from_logits(
        wave((1, 4, 3, 3), .1, 4.), torch.ones(1, 3, 3).bool())


def test_adaptive_reference_values():
    targets = adaptive_targets()
    assert mean_class_maximum(targets).item() == pytest.approx(
        .86603842, abs=1e-8)
    stage = KeepAboveAdaptiveThreshold()
    keep = stage.keep(targets)
    assert stage.threshold.item() == pytest.approx(.85001604, abs=1e-7)
    assert torch.equal(keep, targets.confidence >= .850016)


def test_evaluation_leaves_the_threshold():
    stage = KeepAboveAdaptiveThreshold().eval()
    stage.keep(adaptive_targets())
    assert stage.threshold.item() == pytest.approx(.85)


def test_classes_on_padding_do_not_count():
    targets = row([.6, .8, .9], label=[0, 0, 1], valid=[True, True, False])
    assert mean_class_maximum(targets).item() == pytest.approx(.8)


def test_nothing_but_padding_leaves_the_threshold():
    stage = KeepAboveAdaptiveThreshold(momentum=.5)
    assert weights_after(
        stage, row([.9, .1], weight=[0., 0.], valid=[False] * 2)) == [0., 0.]
    assert stage.threshold.item() == pytest.approx(.85)


def test_adaptive_threshold_is_state():
    stage, other = KeepAboveAdaptiveThreshold(), KeepAboveAdaptiveThreshold()
    stage.keep(adaptive_targets())
    other.load_state_dict(stage.state_dict())
    assert torch.equal(other.threshold, stage.threshold)
    for _ in range(3):
        stage.keep(adaptive_targets())
        other.keep(adaptive_targets())
    assert torch.equal(other.threshold, stage.threshold)


@pytest.mark.parametrize('kwargs', [dict(initial_thr=-1), dict(momentum=2)])
def test_bad_adaptive_threshold(kwargs):
    with pytest.raises(ValueError, match=f'Threshold.{list(kwargs)[0]}'):
        KeepAboveAdaptiveThreshold(**kwargs)


def test_adaptive_threshold_of_two_processes(tmp_path):
    """Maxima are .7, .9 and .6; then the second process has none."""
    script = Path(__file__).with_name('threshold_in_processes.py')
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(tmp_path)],
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=open(tmp_path / f'{rank}.err', 'w')) for rank in range(2)
    ]
    try:
        for rank, process in enumerate(processes):
            code = process.wait(timeout=120)
            assert code == 0, (tmp_path / f'{rank}.err').read_text()[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    mean = (.7 + .9 + .6) / 3
    first = (.8 + mean) / 2
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        assert found == pytest.approx([first, (first + .7) / 2], abs=1e-6)
