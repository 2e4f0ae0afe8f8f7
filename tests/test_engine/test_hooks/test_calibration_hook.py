# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmsemi.engine.hooks import CalibrationHook
from mmsemi.pseudo_labels import CalibratePixels, CalibrateScores

FOLDER = Path(__file__).parents[1]
CALIBRATE = dict(
    type='mmsemi.CalibratePixels', calibrator=dict(num_classes=3))
KEEP = dict(type='mmsemi.KeepConfidentPixels', conf_thr=.4)


def load_module(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def tiny():
    return load_module('tiny_semantic_training')


@pytest.fixture(scope='module')
def root(tiny, tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp('boxes'))


@pytest.fixture
def make_runner(tiny, root, tmp_path):

    def make(name='run', stages=(CALIBRATE, KEEP), teacher=None, hook=None,
             metainfo=None, **settings):
        model = dict(
            type='mmsemi.FixMatch',
            teacher=dict(momentum=.1, **(teacher or {})),
            pseudo_label_pipeline=list(stages))
        config = tiny.make_config(root, tmp_path / name, model, **settings)
        images = tiny.dataset(root, 'labeled', [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='mmsemi.PackSegInputs')
        ])
        if metainfo is not None:
            images.update(type='BaseSegDataset', metainfo=metainfo)
        loader = dict(batch_size=3, num_workers=0, dataset=images)
        config.custom_hooks.append(
            dict(
                dict(
                    type='mmsemi.CalibrationHook',
                    dataloader=loader,
                    interval=4), **(hook or {})))
        return Runner.from_cfg(config)

    return make


def calibrator_of(runner):
    stage, = (
        stage for stage in runner.model.pseudo_label_pipeline.stages
        if isinstance(stage, CalibratePixels))
    return stage.calibrator


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, CalibrationHook))


@pytest.fixture
def measured(monkeypatch):
    """list[int]: Optimizer steps after which was measured."""
    steps = []
    calibrate = CalibrationHook.calibrate
    monkeypatch.setattr(
        CalibrationHook, 'calibrate',
        lambda self, model: steps.append(int(model.step)) or calibrate(
            self, model))
    return steps


def test_measures_before_the_first_label_and_at_intervals(
        make_runner, measured):
    make_runner(max_iters=8).train()
    assert measured == [0, 4, 8]


def test_burn_in_is_not_measured(make_runner, measured):
    make_runner(max_iters=8, teacher=dict(burn_in_steps=5)).train()
    assert measured == [5, 8]


def test_last_statistics_are_the_teachers(make_runner):
    """With decay=0 nothing but the last pass is left."""
    runner = make_runner(max_iters=4, hook=dict(decay=0.))
    runner.train()
    model, found = runner.model, calibrator_of(runner)
    again = CalibratePixels(dict(num_classes=3))
    preprocess = model.data_preprocessor.data_preprocessor
    for data in hook_of(runner)._loader:
        batch = preprocess(data, False)
        again.observe(
            model.predict_unfiltered(batch['inputs'], batch['data_samples']),
            batch['data_samples'])
    again.calibrator.fit()
    assert torch.allclose(found.statistics, again.calibrator.statistics)
    assert torch.allclose(found.params, again.calibrator.params)
    assert bool(found.active) and found.statistics[..., 0].sum() > 8


def test_earlier_statistics_decay(make_runner):

    def statistics(name, **settings):
        runner = make_runner(name, **settings)
        runner.train()
        return calibrator_of(runner).statistics

    first = statistics('first', max_iters=3)
    last = statistics('last', max_iters=4, hook=dict(decay=0.))
    both = statistics('both', max_iters=4, hook=dict(decay=.5))
    assert torch.allclose(both, .5 * first + last)


def test_corrected_labels_reach_the_student(make_runner):
    runner = make_runner(max_iters=4)
    runner.train()
    model = runner.model
    batch = next(iter(hook_of(runner)._loader))
    batch = model.data_preprocessor.data_preprocessor(batch, False)
    raw = model.predict_unfiltered(**batch)
    labels = model.label_unlabeled(**batch)
    assert not torch.equal(raw[0].confidence, labels[0].confidence)
    expected = calibrator_of(runner).correct(
        raw[0].prob.movedim(0, -1), raw[0].label)
    assert torch.equal(labels[0].prob.movedim(0, -1), expected)


def test_measuring_leaves_modes_weights_and_thresholds(make_runner):
    adaptive = dict(type='mmsemi.KeepAboveAdaptiveThreshold', momentum=.5)
    runner = make_runner(
        stages=(adaptive, CALIBRATE), teacher=dict(burn_in_steps=1),
        max_iters=1)
    runner.train()
    model = runner.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hook_of(runner).calibrate(model)
    assert model.student.training and model.pseudo_label_pipeline.training
    for key, value in model.state_dict().items():
        if 'calibrator' not in key:
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize('num_workers', [0, 1])
def test_resume_is_exact(make_runner, tmp_path, num_workers):
    make_runner('whole', max_iters=10, interval=5).train()
    resumed = tmp_path / 'resumed'
    resumed.mkdir()
    shutil.copy(tmp_path / 'whole' / 'iter_5.pth', resumed)
    (resumed / 'last_checkpoint').write_text(str(resumed / 'iter_5.pth'))
    make_runner(
        'resumed',
        max_iters=10,
        interval=5,
        resume=True,
        num_workers=num_workers).train()

    def state(name):
        path = tmp_path / name / 'iter_10.pth'
        return torch.load(
            path, map_location='cpu', weights_only=False)['state_dict']

    whole, found = state('whole'), state('resumed')
    assert any('statistics' in key for key in whole)
    assert found.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(value, found[key]), key


def test_classes_lean_on_those_that_are_as_frequent(make_runner, measured):
    classes = ('background', 'red', 'green')
    images = dict(classes=classes, frequency=('f', 'r', 'c'))
    runner = make_runner(max_iters=1, metainfo=images)
    runner.train()
    assert calibrator_of(runner).groups.tolist() == [2, 0, 1]
    own = dict(CALIBRATE, calibrator=dict(num_classes=3, groups=[0, 1, 1]))
    runner = make_runner(
        'own', stages=(own, KEEP), max_iters=1, metainfo=images)
    runner.train()
    assert calibrator_of(runner).groups.tolist() == [0, 1, 1]


def test_pipeline_without_stage_is_refused(make_runner):
    with pytest.raises(ValueError, match='needs mmsemi.CalibrateScores'):
        make_runner(stages=(KEEP, )).train()


def test_other_number_of_classes_is_refused(make_runner):
    with pytest.raises(ValueError, match='num_classes=3.*have 4 classes'):
        make_runner(metainfo=dict(classes=('a', 'b', 'c', 'd'))).train()


@pytest.mark.parametrize('kwargs, message', [
    (dict(interval=0), 'interval=0'),
    (dict(interval=True), 'interval=True'),
    (dict(decay=1.5), 'decay=1.5'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=f'CalibrationHook.{message}'):
        CalibrationHook(**dict(dict(dataloader={}), **kwargs))


def test_instances(tmp_path, digits_root):
    """SOLOv2 on digits: scores are measured and corrected."""
    init_default_scope('mmdet')
    tiny = load_module('tiny_training')
    images = tiny.dataset_config(digits_root, False)
    images['pipeline'] = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='mmsemi.PackDetInputs')
    ]
    hook = dict(
        type='mmsemi.CalibrationHook',
        dataloader=dict(batch_size=2, num_workers=0, dataset=images))
    stage = dict(
        type='mmsemi.CalibrateScores', calibrator=dict(num_classes=10))
    with pytest.MonkeyPatch.context() as patch:
        config = tiny.model_config()
        config['pseudo_label_pipeline'].insert(0, stage)
        patch.setattr(tiny, 'model_config', lambda _: config)
        runner = tiny.make_runner(
            digits_root, str(tmp_path), max_iters=2, more_hooks=[hook])
        runner.train()
    stage = runner.model.pseudo_label_pipeline.stages[0]
    assert isinstance(stage, CalibrateScores)
    assert bool(stage.calibrator.active)
    # Four predictions an image at most.
    count = stage.calibrator.statistics[..., 0].sum()
    assert 0 < count <= 4 * len(hook_of(runner)._loader.dataset)
