# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, MODELS
from torch import nn

from mmsemi.methods import MultiViewModel


@METRICS.register_module(force=True)
class ToyMean(BaseMetric):
    """Mean of what the model predicts, and how many samples there were."""

    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results.extend(float(sample) for sample in data_samples)

    def compute_metrics(self, results):
        return dict(
            mean=sum(results) / len(results), count=float(len(results)))


def make(runner_factory, models=None, fp16=False, **changes):
    val_cfg = dict(type='mmsemi.MultiViewValLoop', fp16=fp16)
    if models is not None:
        val_cfg['models'] = models
    settings = dict(
        max_iters=2,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
        val_dataloader=dict(
            batch_size=3,
            num_workers=0,
            dataset=dict(type='ToyVectors'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate')),
        val_cfg=val_cfg,
        val_evaluator=dict(type='ToyMean'))
    settings.update(changes)
    return runner_factory(**settings)


def shift(runner, teacher=1., student=2.):
    """Make the models predict these constants."""
    for name, value in dict(teacher=teacher, student=student).items():
        head = getattr(runner.model, name).head
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, value)


@pytest.mark.parametrize('predict_on, plain', [('teacher', 1.),
                                               ('student', 2.)])
def test_both_are_evaluated(runner_factory, predict_on, plain):
    runner = make(
        runner_factory,
        model=dict(type='ToyTeacherStudent', predict_on=predict_on))
    shift(runner)
    metrics = runner.val()
    assert metrics == {
        'toy/mean': plain,
        'toy/count': 7.,
        'teacher/toy/mean': 1.,
        'teacher/toy/count': 7.,
        'student/toy/mean': 2.,
        'student/toy/count': 7.
    }
    assert list(metrics)[0] == 'toy/mean'
    assert runner.model.predict_on == predict_on


@pytest.mark.parametrize('models', ['teacher', ['teacher']])
def test_one_can_be_evaluated_alone(runner_factory, models):
    runner = make(runner_factory, models)
    shift(runner)
    assert runner.val() == {
        'toy/mean': 1.,
        'toy/count': 7.,
        'teacher/toy/mean': 1.,
        'teacher/toy/count': 7.
    }


def test_training_saves_the_best(runner_factory):
    runner = make(
        runner_factory,
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook',
                interval=2,
                by_epoch=False,
                save_best='toy/mean',
                rule='greater')))
    runner.train()
    best = runner.message_hub.get_info('best_score')
    scalar = runner.message_hub.get_scalar
    assert best == scalar('val/toy/mean').current()
    assert best == scalar('val/teacher/toy/mean').current()
    assert best != scalar('val/student/toy/mean').current()


def test_an_exception_leaves_nothing_behind(runner_factory):
    runner = make(runner_factory)
    shift(runner)
    loop = runner._val_loop = runner.build_val_loop(runner._val_loop)
    process, calls = loop.evaluator.process, []

    def fail_at_fourth(**kwargs):
        calls.append(runner.model.predict_on)
        if len(calls) == 5:
            raise RuntimeError('broken')
        process(**kwargs)

    loop.evaluator.process = fail_at_fourth
    with pytest.raises(RuntimeError, match='broken'):
        loop.run()
    # The teacher's three batches, then two of the student.
    assert calls == ['teacher'] * 3 + ['student'] * 2
    assert runner.model.predict_on == 'teacher'
    assert len(loop.evaluator.metrics[0].results) == 3
    loop.evaluator.process = process
    assert loop.run()['teacher/toy/count'] == 7.


def test_empty_teacher_is_not_evaluated_twice(runner_factory):
    runner = make(
        runner_factory,
        model=dict(type='ToyTeacherStudent', teacher=dict(burn_in_steps=5)))
    shift(runner)
    loop = runner._val_loop = runner.build_val_loop(runner._val_loop)
    run_iter, calls = loop.run_iter, []
    loop.run_iter = lambda *args: (calls.append(args[0]), run_iter(*args))
    metrics = loop.run()
    assert calls == [0, 1, 2]
    assert {
        key: value
        for key, value in metrics.items() if 'mean' in key
    } == {
        'toy/mean': 2.,
        'teacher/toy/mean': 2.,
        'student/toy/mean': 2.
    }


@pytest.mark.parametrize('models', [[], ['teacher', 'other'], 'both'])
def test_unknown_models_are_refused(runner_factory, models):
    with pytest.raises(ValueError, match='val_cfg.models='):
        make(runner_factory, models).val()


def test_model_that_predicts_must_be_listed(runner_factory):
    with pytest.raises(ValueError, match="predict_on='teacher'"):
        make(runner_factory, ['student']).val()


def test_plain_model_is_refused(runner_factory):
    runner = make(runner_factory, model=dict(type='ToySegmenter'))
    with pytest.raises(TypeError, match='MultiViewValLoop.*ToySegmenter'):
        runner.val()


@METRICS.register_module(force=True)
class ToySilent(ToyMean):
    """As mmdet's metrics: no figures where nothing was predicted."""

    def compute_metrics(self, results):
        return super().compute_metrics(results) if any(results) else {}


def test_key_of_the_best_is_there_though_nothing_is_found(runner_factory):
    """mmengine's checkpoint hook looks it up and skips None."""
    runner = make(runner_factory, val_evaluator=dict(type='ToySilent'))
    shift(runner, teacher=0., student=2.)
    assert runner.val() == {
        'toy/mean': None,
        'toy/count': None,
        'student/toy/mean': 2.,
        'student/toy/count': 7.
    }


@MODELS.register_module(force=True)
class ToyCommittee(MultiViewModel):
    """Two toy segmenters and their mean."""

    predictors = ('network_0', 'network_1', 'mean')

    def __init__(self, predict_on='network_0'):
        networks = [
            MODELS.build(
                dict(
                    type='ToySegmenter',
                    data_preprocessor=dict(type='BaseDataPreprocessor')))
            for _ in range(2)
        ]
        super().__init__(networks[0], predict_on)
        self.networks = nn.ModuleList(networks)
        for i, network in enumerate(networks):
            nn.init.zeros_(network.head.weight)
            nn.init.constant_(network.head.bias, 1. + i)

    @property
    def predictor(self):
        if self.predict_on == 'mean':
            return self.networks
        return self.networks[self.predictors.index(self.predict_on)]

    def loss(self, inputs, data_samples):
        return self.networks[0].loss(inputs['sup'])

    def predict(self, inputs, data_samples):
        if self.predict_on == 'mean':
            return sum(n(inputs) for n in self.networks) / 2
        return self.predictor(inputs)


@pytest.mark.parametrize('predict_on, plain', [('network_0', 1.),
                                               ('mean', 1.5)])
def test_any_model_with_several_predictors(runner_factory, predict_on, plain):
    runner = make(
        runner_factory,
        model=dict(type='ToyCommittee', predict_on=predict_on),
        custom_hooks=[])
    means = {
        key: value
        for key, value in runner.val().items() if key.endswith('toy/mean')
    }
    assert means == {
        'toy/mean': plain,
        'network_0/toy/mean': 1.,
        'network_1/toy/mean': 2.,
        'mean/toy/mean': 1.5
    }


def test_some_of_several_predictors(runner_factory):
    model = dict(type='ToyCommittee', predict_on='mean')
    metrics = make(
        runner_factory, ['network_1', 'mean'], model=model,
        custom_hooks=[]).val()
    assert {key.rsplit('/', 2)[0] for key in metrics} == {
        'toy', 'network_1', 'mean'
    }
    with pytest.raises(ValueError, match="allowed are 'network_0', "):
        make(
            runner_factory, ['teacher'], model=model, custom_hooks=[]).val()


def test_only_the_student_is_there(runner_factory):
    runner = make(
        runner_factory,
        model=dict(type='ToyTeacherStudent', teacher=dict(mode='student')))
    assert set(runner.val()) == {
        'toy/mean', 'toy/count', 'student/toy/mean', 'student/toy/count'
    }
