# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmsemi.engine.hooks import CalibrationHook
from mmsemi.models.evaluation_mode import evaluating
from mmsemi.pseudo_labels import (CalibratePixels, CalibrateScores,
                                  save_calibration)

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
def held_out(tiny, root):
    """callable: Config of the loader of held-out images."""

    def config(metainfo=None):
        images = tiny.dataset(root, 'labeled', [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='mmsemi.PackSegInputs')
        ])
        if metainfo is not None:
            images.update(type='BaseSegDataset', metainfo=metainfo)
        return dict(batch_size=3, num_workers=0, dataset=images)

    return config


@pytest.fixture
def make_runner(tiny, root, tmp_path, held_out):

    def make(name='run', stages=(CALIBRATE, KEEP), teacher=None, hook=None,
             metainfo=None, **settings):
        model = dict(
            type='mmsemi.FixMatch',
            teacher=dict(momentum=.1, **(teacher or {})),
            pseudo_label_pipeline=list(stages))
        config = tiny.make_config(root, tmp_path / name, model, **settings)
        config.custom_hooks.append(
            dict(
                dict(
                    type='mmsemi.CalibrationHook',
                    dataloader=held_out(metainfo),
                    interval=4), **(hook or {})))
        return Runner.from_cfg(config)

    return make


@pytest.fixture
def make_cps(tiny, root, tmp_path, held_out):

    def make(name='run', stages=(CALIBRATE, KEEP), model=None, hook=None,
             **settings):
        model = dict(
            type='mmsemi.CPS',
            pseudo_label_pipeline=list(stages),
            **(model or {}))
        config = tiny.make_config(root, tmp_path / name, model, **settings)
        config.custom_hooks = [
            dict(type='mmsemi.IterSeedHook'),
            dict(
                dict(
                    type='mmsemi.CalibrationHook',
                    dataloader=held_out(),
                    interval=4), **(hook or {}))
        ]
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
        lambda self, model: steps.append(
            int(model.step if hasattr(model, 'step') else model.iteration)
        ) or calibrate(self, model))
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
    check_resume(make_runner, tmp_path, num_workers)


def check_resume(make_runner, tmp_path, num_workers=0):
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


# Networks that teach each other ---------------------------------------------


def test_each_network_has_its_own_calibration(make_cps, measured):
    runner = make_cps(max_iters=4, hook=dict(decay=0.))
    runner.train()
    assert measured == [0, 4]
    model = runner.model
    stages = [pipeline.stages[0] for pipeline in model.pseudo_label_pipelines]
    again = [CalibratePixels(dict(num_classes=3)) for _ in stages]
    preprocess = model.data_preprocessor.data_preprocessor
    for data in hook_of(runner)._loader:
        batch = preprocess(data, False)
        predicted = model.predict_unfiltered(**batch)
        assert len(predicted) == 2
        for stage, labels in zip(again, predicted):
            stage.observe(labels, batch['data_samples'])
    for stage, expected in zip(stages, again):
        expected.calibrator.fit()
        assert bool(stage.calibrator.active)
        assert torch.allclose(stage.calibrator.statistics,
                              expected.calibrator.statistics)
        assert torch.allclose(stage.calibrator.params,
                              expected.calibrator.params)
    first, second = (stage.calibrator for stage in stages)
    assert not torch.allclose(first.statistics, second.statistics)


def test_networks_teach_corrected_labels(make_cps):
    runner = make_cps(stages=[CALIBRATE], max_iters=1)
    runner.train()
    model = runner.model
    batch = next(iter(hook_of(runner)._loader))
    batch = model.data_preprocessor.data_preprocessor(batch, False)
    with evaluating(model):
        logits = model._label(batch['inputs'])
    targets = model._targets(logits, batch['data_samples'],
                             batch['inputs'])
    raw = model._unfiltered(logits, batch['data_samples'])
    for i, pipeline in enumerate(model.pseudo_label_pipelines):
        calibrator = pipeline.stages[0].calibrator
        expected = calibrator.correct(raw[i].prob.movedim(1, -1),
                                      raw[i].label)
        torch.testing.assert_close(targets[i].prob.movedim(1, -1), expected)
        assert not torch.equal(targets[i].confidence, raw[i].confidence)


def test_measuring_networks_leaves_their_statistics(make_cps):
    runner = make_cps(max_iters=1)
    runner.train()
    model = runner.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hook_of(runner).calibrate(model)
    assert all(network.training for network in model.networks)
    for key, value in model.state_dict().items():
        if 'calibrator' not in key:
            assert torch.equal(value, before[key]), key


def test_networks_are_not_measured_before_labels_count(make_cps, measured):
    model = dict(cps_weight=dict(weight=1.5, begin=5))
    make_cps(max_iters=8, model=model).train()
    assert measured == [5, 8]


def test_resume_of_networks_is_exact(make_cps, tmp_path):
    check_resume(make_cps, tmp_path)


# Statistics from a file -----------------------------------------------------


@pytest.fixture
def statistics(tmp_path):
    """str: File of a class that is too sure and two without predictions."""
    stage = CalibratePixels(dict(num_classes=3))
    stage.calibrator.update(
        torch.full((50, ), .9), torch.zeros(50).long(),
        torch.arange(50) < 20)
    stage.calibrator.fit()
    save_calibration([stage], tmp_path / 'calibration.pth')
    return str(tmp_path / 'calibration.pth')


def test_file_instead_of_images(make_runner, measured, statistics, tmp_path):
    only = dict(dataloader=None, interval=2000, statistics=statistics)
    runner = make_runner(max_iters=5, interval=5, hook=only)
    runner.train()
    assert measured == []
    calibrator = calibrator_of(runner)
    assert calibrator.statistics[0].sum(0).tolist() == pytest.approx(
        [50, 45, 20], abs=1e-5)
    assert float(calibrator.transform(torch.tensor(.9),
                                      torch.tensor(0))) < .6
    # Resumed, it goes on with its own and needs no file.
    Path(statistics).unlink()
    runner = make_runner(max_iters=6, resume=True, hook=only)
    runner.train()
    assert runner.iter == 6
    again = calibrator_of(runner)
    assert again.statistics.equal(calibrator.statistics)
    assert again.params.equal(calibrator.params)


def test_file_before_images(make_runner, measured, statistics):
    runner = make_runner(max_iters=3, hook=dict(statistics=statistics))
    runner.train()
    assert measured == []
    runner = make_runner(
        'more', max_iters=4, hook=dict(statistics=statistics))
    runner.train()
    assert measured == [4]
    # Half of the fifty and what was seen in the images.
    assert calibrator_of(runner).statistics[..., 0].sum() > 25 + 8


def test_file_that_is_missing(make_runner, tmp_path):
    hook = dict(statistics=str(tmp_path / 'none.pth'))
    with pytest.raises(FileNotFoundError, match='none.pth'):
        make_runner(max_iters=1, hook=hook).train()


# Mistakes and other models --------------------------------------------------


def test_similarity_is_missing_from_the_start(make_runner):
    stage = dict(
        CALIBRATE, calibrator=dict(num_classes=3, rest='similarity'))
    runner = make_runner(
        stages=(stage, KEEP), max_iters=1, teacher=dict(burn_in_steps=1))
    with pytest.raises(ValueError, match="rest='similarity'.*PrototypeHook"):
        runner.train()


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
    (dict(dataloader=None), ' needs dataloader, statistics or both'),
    (dict(dataloader=None, statistics='a.pth', interval=9),
     'interval and decay have no effect'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=f'CalibrationHook.?{message}'):
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
