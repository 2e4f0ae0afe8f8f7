# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch

from mmsemi.engine.hooks import ClassThresholdHook

MODEL = dict(type='mmsemi.CAFS', teacher=dict(momentum=.1))
HOOK = dict(interval=2, held_out_share=.25, min_pixels=1, momentum=.5)
KEY = 'mmsemi_class_thresholds'


@pytest.fixture(scope='module')
def tiny():
    """module: ``tiny_semantic_training.py`` one folder above."""
    path = Path(__file__).parents[1] / 'tiny_semantic_training.py'
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def root(tiny, tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp('boxes'))


@pytest.fixture
def train(tiny, root, tmp_path, monkeypatch):

    def run(name='run', model=MODEL, hook=HOOK, before=None, **settings):
        runner = tiny.make_runner(
            root, tmp_path / name, model, threshold_hook=hook, **settings)
        if before:
            before(runner)
        tiny.RedAndGreen.drawn.clear()
        runner.train()
        return runner

    return run


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, ClassThresholdHook))


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def test_held_out_images_are_never_drawn(train, tiny):
    runner = train()
    held_out = hook_of(runner).held_out
    assert len(held_out) == 2
    # Loading for the thresholds goes past the training pipeline.
    assert len(tiny.RedAndGreen.drawn) == 8 * 2
    assert not set(tiny.RedAndGreen.drawn) & set(held_out)
    # Nor after the sampling weights have changed.
    sampler = runner.train_dataloader.sampler
    later = [int(i) for i in islice(iter(sampler), 5 * 200)]
    labeled = {i for i in later if i < 8}
    assert labeled and not labeled & set(held_out)


def test_first_measurement_replaces_and_later_ones_move(train, monkeypatch):
    measured, trace = [], []

    class Histogram:
        """Gives 0.6 at first, then 0.9."""

        def thresholds(self, **kwargs):
            assert kwargs == dict(
                precision=.9,
                min_pixels=1,
                default=.95,
                limits=(.5, .99),
                criterion='calibrated')
            return torch.full((3, ), .9 if len(measured) > 1 else .6)

        def iou(self):
            return torch.tensor([1., .5, float('nan')])

    def measure(hook, runner, model):
        measured.append(runner.iter + 1)
        trace.append(model.threshold_stages[0].thresholds[:4].tolist())
        return Histogram()

    monkeypatch.setattr(ClassThresholdHook, '_measure', measure)
    runner = train()
    assert measured == [2, 4, 6, 8]
    trace.append(runner.model.threshold_stages[0].thresholds[:4].tolist())
    for found, expected in zip(trace, (.95, .6, .75, .825, .8625)):
        assert found == pytest.approx([expected] * 3 + [.95])


def test_measured_thresholds_lie_within_the_limits(train):
    runner = train(hook=dict(HOOK, limits=(.4, .8), default=.6))
    found = runner.model.threshold_stages[0].thresholds[:3]
    assert (found >= .4).all() and (found <= .8).all()
    assert (runner.model.threshold_stages[0].thresholds[3:] == .95).all()


def test_teacher_is_measured_as_in_validation(train, monkeypatch):
    """By hand: the histogram of whole held-out images."""
    from mmsemi.methods.cafs import ConfidenceHistogram
    found, update = [], ConfidenceHistogram.update

    def note(self, confidence, predicted, target):
        found.append((confidence, predicted, target))
        return update(self, confidence, predicted, target)

    monkeypatch.setattr(ConfidenceHistogram, 'update', note)
    runner = train(max_iters=2)
    model, hook = runner.model, hook_of(runner)
    assert len(found) == 2
    dataset = runner.val_dataloader.dataset
    for index, (confidence, predicted, target) in zip(hook.held_out, found):
        data = dataset[index]
        data = model.data_preprocessor(
            dict(
                inputs=[data['inputs']], data_samples=[data['data_samples']]))
        with torch.no_grad():
            prob = model.teacher(data['inputs']).softmax(1)[0]
        assert torch.allclose(confidence, prob.max(0).values, atol=1e-5)
        assert torch.equal(target,
                           data['data_samples'][0].gt_sem_seg.data[0])


def test_modes_are_left_as_they_are(train):
    runner = train(
        model=dict(MODEL, teacher=dict(mode='student')), max_iters=3)
    assert all(module.training for module in runner.model.modules())


def test_burn_in_is_not_measured(train, monkeypatch):
    measured = []
    monkeypatch.setattr(
        ClassThresholdHook, '_measure',
        lambda self, runner, model: measured.append(runner.iter + 1) or
        self._nothing)
    monkeypatch.setattr(
        ClassThresholdHook,
        '_nothing',
        type('None_', (), dict(thresholds=lambda self, **_: torch.ones(3)))(),
        raising=False)
    train(
        model=dict(MODEL, teacher=dict(burn_in_steps=5)),
        hook=dict(HOOK, oversample=False))
    assert measured == [6, 8]


def test_weights_hold_after_what_workers_have_asked_for(train):
    checkpoint = load(
        Path(train(max_iters=4).work_dir, 'iter_4.pth'))[KEY]
    assert checkpoint['measured'] == 2
    positions = [position for position, _ in checkpoint['weights']]
    assert positions == [0, (2 + 64) * 5, (4 + 64) * 5]


def test_without_oversampling_weights_stay(train):
    runner = train(hook=dict(HOOK, oversample=False), max_iters=4)
    weights = load(Path(runner.work_dir, 'iter_4.pth'))[KEY]['weights']
    assert [position for position, _ in weights] == [0]
    assert weights[0][1].count(0.) == 2 and weights[0][1].count(1.) == 6


@pytest.mark.parametrize('oversample', [True, False])
def test_held_out_images_are_released(train, monkeypatch, oversample):
    measured = []
    measure = ClassThresholdHook._measure
    monkeypatch.setattr(
        ClassThresholdHook, '_measure',
        lambda self, runner, model: measured.append(runner.iter + 1) or
        measure(self, runner, model))
    runner = train(hook=dict(HOOK, release_at=5, oversample=oversample))
    assert measured == [2, 4, 5]
    held_out = hook_of(runner).held_out
    weights = load(Path(runner.work_dir, 'iter_8.pth'))[KEY]['weights']
    position, last = weights[-1]
    assert position == (5 + 64) * 5
    assert all(last[i] > 0 for i in held_out)
    assert all(w[i] == 0 for _, w in weights[:-1] for i in held_out)
    if not oversample:
        assert last == [1.] * 8
    sampler = runner.train_dataloader.sampler
    later = {int(i) for i in islice(iter(sampler), 5 * 400)}
    assert set(held_out) <= later


def test_release_before_anything_is_measured(train):
    with pytest.raises(ValueError, match='release_at=3.*burn_in_steps=3'):
        train(
            model=dict(MODEL, teacher=dict(burn_in_steps=3)),
            hook=dict(HOOK, release_at=3))
    with pytest.raises(TypeError, match="release_at='5'"):
        ClassThresholdHook(interval=1, release_at='5')


@pytest.mark.parametrize('num_workers, release_at', [(0, None), (1, None),
                                                     (1, 4), (1, 7)])
def test_resume_is_exact(train, tmp_path, monkeypatch, num_workers,
                         release_at):
    # Weights that hold at once, so that the resumed ones matter.
    monkeypatch.setattr('mmsemi.engine.hooks.class_threshold_hook.PREFETCHED',
                        2)
    hook = dict(HOOK, release_at=release_at)
    whole = train('whole', hook=hook, max_iters=10, interval=5)
    whole = load(Path(whole.work_dir, 'iter_10.pth'))
    resumed = tmp_path / 'resumed'
    resumed.mkdir()
    shutil.copy(tmp_path / 'whole' / 'iter_5.pth', resumed)
    (resumed / 'last_checkpoint').write_text(str(resumed / 'iter_5.pth'))
    train(
        'resumed',
        hook=hook,
        max_iters=10,
        interval=5,
        resume=True,
        num_workers=num_workers)
    found = load(resumed / 'iter_10.pth')
    assert found[KEY] == whole[KEY]
    assert len({str(weights) for _, weights in whole[KEY]['weights']}) > 1
    assert found['state_dict'].keys() == whole['state_dict'].keys()
    for key, value in whole['state_dict'].items():
        assert torch.equal(value, found['state_dict'][key]), key


def test_other_models_are_refused(train):
    with pytest.raises(TypeError, match='mmsemi.CAFS.*FixMatch'):
        train(model=dict(type='mmsemi.FixMatch'))


def test_pipeline_for_prediction_is_needed(train):
    with pytest.raises(ValueError, match='val_dataloader.dataset.pipeline'):
        train(before=lambda runner: runner.cfg.pop('val_dataloader'))


@pytest.mark.parametrize('share, count', [(.01, 0), (.99, 8), (1, 8)])
def test_share_that_leaves_nothing(train, share, count):
    with pytest.raises(
            ValueError, match=f'held_out_share={share} of 8 .* are {count}'):
        train(hook=dict(HOOK, held_out_share=share))


def test_too_many_workers(train, monkeypatch):
    monkeypatch.setattr('mmsemi.engine.hooks.class_threshold_hook.PREFETCHED',
                        1)
    with pytest.raises(ValueError, match='num_workers=1 .*prefetch_factor=2'):
        train(num_workers=1)


@pytest.mark.parametrize('kwargs, message', [
    (dict(interval=0), 'interval=0'),
    (dict(interval=True), 'interval=True'),
    (dict(held_out_share=0), 'held_out_share=0'),
    (dict(precision=1.1), 'precision=1.1'),
    (dict(criterion='f1'), "criterion='f1'"),
    (dict(momentum=0), 'momentum=0'),
    (dict(default=2), 'default=2'),
    (dict(limits=(.9, .5)), r'limits=\(0.9, 0.5\)'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=f'ClassThresholdHook.{message}'):
        ClassThresholdHook(**dict(dict(interval=1), **kwargs))
