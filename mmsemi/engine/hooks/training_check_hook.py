# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Mistakes in a training config that would show only after hours."""
from typing import Iterator, List, Tuple

from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Sampler

from mmsemi.datasets.samplers import MultiSourceSampler, check_batch_size
from mmsemi.registry import HOOKS


@HOOKS.register_module()
class TrainingCheckHook(Hook):
    """Refuse a training that would hang, lose data or resume inexactly.

    It runs :func:`check_training` before the first iteration.
    :class:`TeacherUpdateHook` does so too; this hook is for configs without
    a teacher, such as supervised baselines.
    """

    priority = 'HIGHEST'

    def before_train(self, runner: Runner) -> None:
        """Check the training."""
        check_training(runner)


def check_training(runner: Runner) -> None:
    """Check loop, data loader and checkpoints of a training.

    Args:
        runner (Runner): A runner whose training is about to start.

    Raises:
        ValueError: If an epoch would never end, if the data loader cuts the
            sampler's batches elsewhere, or if a checkpoint would fall
            between two optimizer steps.
    """
    check_train_loop(runner)
    check_batch_size(runner.train_dataloader)
    check_checkpoint_interval(runner)


def check_train_loop(runner: Runner) -> None:
    """Refuse epochs over an endless sampler.

    Args:
        runner (Runner): The runner.

    Raises:
        ValueError: If the training runs by epochs and its data come from
            ``mmsemi.MultiSourceSampler``.
    """
    sampler = index_sampler(runner.train_dataloader)
    if isinstance(runner.train_loop, EpochBasedTrainLoop) and isinstance(
            sampler, MultiSourceSampler):
        raise ValueError(
            f'train_cfg asks for {type(runner.train_loop).__name__}, but an '
            f'epoch of {type(sampler).__name__} never ends. Use train_cfg='
            "dict(type='IterBasedTrainLoop', max_iters=...).")


def check_checkpoint_interval(runner: Runner) -> None:
    """Refuse checkpoints between two optimizer steps.

    The gradients gathered so far are in no checkpoint, so that a training
    resumed from there would go another way.

    Args:
        runner (Runner): The runner.

    Raises:
        ValueError: If the interval of a ``CheckpointHook`` is no multiple of
            ``accumulative_counts``; with ``save_best`` also if the interval
            of validations is none, because these write checkpoints too.
    """
    counts = {
        wrapper._accumulative_counts
        for wrapper in optim_wrappers(runner.optim_wrapper)
    }
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook):
            continue
        if hook.by_epoch:
            if isinstance(runner.train_loop, IterBasedTrainLoop):
                print_log(
                    'No checkpoint will be written before the end of the '
                    'training: it runs by iterations. Set default_hooks='
                    "dict(checkpoint=dict(type='CheckpointHook', by_epoch="
                    'False, interval=...)).',
                    logger='current',
                    level=30)
            continue
        for field, interval in _checkpoint_intervals(runner, hook):
            for count in counts:
                if interval > 0 and interval % count:
                    raise ValueError(
                        f'{field}={interval} is no multiple of optim_wrapper.'
                        f'accumulative_counts={count}: a checkpoint would '
                        'fall between two optimizer steps, and a training '
                        'resumed from it would lose gradients. Use '
                        f'{interval // count * count or count} or another '
                        f'multiple of {count}.')


def _checkpoint_intervals(runner: Runner,
                          hook: CheckpointHook) -> List[Tuple[str, int]]:
    intervals = [('CheckpointHook.interval', hook.interval),
                 ('CheckpointHook.save_begin', hook.save_begin)]
    if hook.save_best is not None and runner.val_loop is not None:
        loop = runner.train_loop
        intervals += [
            ('train_cfg.val_interval (with CheckpointHook.save_best)', value)
            for value in {loop.val_interval, *loop.dynamic_intervals}
        ]
    return intervals


def optim_wrappers(optim_wrapper: OptimWrapper) -> Iterator[OptimWrapper]:
    """Yield the wrapper itself, or all wrappers of an OptimWrapperDict.

    Args:
        optim_wrapper (OptimWrapper or OptimWrapperDict): What a runner has.

    Yields:
        OptimWrapper: A wrapper of one optimizer.
    """
    if isinstance(optim_wrapper, OptimWrapperDict):
        yield from optim_wrapper.values()
    else:
        yield optim_wrapper


def index_sampler(dataloader: DataLoader) -> Sampler:
    """Return the sampler of single indices behind a data loader.

    Args:
        dataloader (DataLoader): A built data loader.

    Returns:
        Sampler: The sampler, also where a batch sampler is in between.
    """
    return getattr(dataloader.batch_sampler, 'sampler', dataloader.sampler)
