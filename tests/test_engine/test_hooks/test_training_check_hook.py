# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import pytest
from torch.utils.data import BatchSampler, DataLoader

from mmsemi.engine.hooks import check_training
from mmsemi.engine.hooks.training_check_hook import index_sampler

SAMPLER = dict(
    type='mmsemi.MultiSourceSampler', batch_size=4, source_ratio=[1, 1])


def loader(batch_size=4, **changes):
    settings = dict(
        batch_size=batch_size,
        num_workers=0,
        dataset=dict(
            type='mmsemi.MultiSourceDataset',
            datasets=[dict(type='ToyViews'),
                      dict(type='ToyViews')]),
        sampler=SAMPLER,
        collate_fn=dict(type='pseudo_collate'))
    settings.update(changes)
    return settings


def checkpoints(**settings):
    return dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, **settings))


def accumulate(count):
    return dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=count)


CHECK = [dict(type='mmsemi.TrainingCheckHook')]
TEACHER = [dict(type='mmsemi.TeacherUpdateHook')]


@pytest.mark.parametrize('hooks', [CHECK, TEACHER])
def test_epochs_over_an_endless_sampler_are_refused(runner_factory, hooks):
    runner = runner_factory(
        train_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        param_scheduler=None,
        custom_hooks=hooks)
    with pytest.raises(
            ValueError,
            match='EpochBasedTrainLoop.*epoch of MultiSourceSampler never '
            r"ends.*train_cfg=dict\(type='IterBasedTrainLoop'"):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize('hooks', [CHECK, TEACHER])
def test_other_batch_size_is_refused(runner_factory, hooks):
    runner = runner_factory(
        train_dataloader=loader(batch_size=2), custom_hooks=hooks)
    with pytest.raises(
            ValueError,
            match='train_dataloader.batch_size=2.*sampler.batch_size=4'):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize('hooks', [CHECK, TEACHER])
@pytest.mark.parametrize('settings, message', [
    (dict(interval=10), r'CheckpointHook\.interval=10 .*accumulative_counts=4'
     '.*Use 8 or another multiple of 4'),
    (dict(interval=2), r'CheckpointHook\.interval=2 .*Use 4 or'),
    (dict(interval=8, save_begin=6), r'CheckpointHook\.save_begin=6'),
])
def test_checkpoints_between_steps_are_refused(runner_factory, hooks, settings,
                                               message):
    runner = runner_factory(
        optim_wrapper=accumulate(4),
        default_hooks=checkpoints(**settings),
        custom_hooks=hooks)
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize('val_interval, save_best, refused', [
    (6, 'accuracy', True),
    (8, 'accuracy', False),
    (6, None, False),
])
def test_best_checkpoints_count_too(runner_factory, val_interval, save_best,
                                    refused):
    runner = runner_factory(
        optim_wrapper=accumulate(4),
        default_hooks=checkpoints(
            interval=8, save_best=save_best, rule='greater'),
        train_cfg=dict(
            type='IterBasedTrainLoop', max_iters=8, val_interval=val_interval),
        val_dataloader=dict(
            batch_size=1,
            num_workers=0,
            dataset=dict(type='ToyViews'),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=dict(),
        val_evaluator=dict(type='DumpResults', out_file_path='unused.pkl'))
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    if refused:
        with pytest.raises(ValueError, match='train_cfg.val_interval.*=6'):
            check_training(runner)
    else:
        check_training(runner)


def test_good_training_passes(runner_factory):
    runner = runner_factory(
        max_iters=8,
        train_dataloader=loader(),
        optim_wrapper=accumulate(4),
        default_hooks=checkpoints(interval=4, save_begin=4),
        custom_hooks=CHECK + TEACHER)
    runner.train()
    assert runner.iter == 8
    # No checkpoints at all are no reason to refuse either.
    runner = runner_factory(
        optim_wrapper=accumulate(3),
        default_hooks=checkpoints(interval=-1),
        custom_hooks=CHECK)
    runner.train()


def test_checkpoints_by_epoch_in_a_training_by_iterations_warn(
        runner_factory, capsys):
    runner = runner_factory(
        max_iters=2,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook')),
        custom_hooks=CHECK)
    runner.train()
    log = capsys.readouterr().out
    assert 'No checkpoint will be written before the end' in log


def test_index_sampler_looks_through_batch_samplers(runner_factory):
    dataloader = runner_factory().build_dataloader(loader())
    sampler = dataloader.sampler
    assert type(sampler).__name__ == 'MultiSourceSampler'
    cut_elsewhere = DataLoader(
        dataloader.dataset,
        batch_sampler=BatchSampler(sampler, batch_size=4, drop_last=True))
    assert index_sampler(cut_elsewhere) is sampler
