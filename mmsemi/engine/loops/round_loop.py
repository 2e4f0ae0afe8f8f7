# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Several trainings one after the other, in one run that can be resumed."""
import bisect
import copy
import os.path as osp
from abc import abstractmethod
from itertools import accumulate
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import broadcast
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch import nn
from torch.utils.data import DataLoader

from mmsemi.datasets.multi_source import MultiSourceDataset
from .round_checks import (bare_model, check_accumulation, check_count,
                           check_runner, schedules_of)

# Words of the seeds, so that data and fresh weights are independent.
DATA_STREAM, WEIGHTS_STREAM = 1, 2


class RoundLoop(IterBasedTrainLoop):
    """Base of loops that train in rounds.

    Iterations are counted over all rounds. Every round has an optimizer,
    schedules and a data stream of its own: ``optim_wrapper`` and
    ``param_scheduler`` of the config are written for one round, and
    ``val_begin`` and ``val_interval`` count within a round, at whose end is
    always a validation. Round 0 is what the same config would do with
    ``IterBasedTrainLoop``.

    A checkpoint is written at the end of every round. Checkpoints hold, as
    :attr:`state_key` in mmengine's message hub, what a resume needs beside
    weights, optimizer and schedules. A resumed training first makes up for
    what follows its last iteration: a validation, what ends a round.

    Args:
        runner (Runner): The runner.
        dataloader (dict): ``train_dataloader``: a
            ``mmsemi.MultiSourceDataset``, whose first source are the
            labelled images, with ``mmsemi.MultiSourceSampler``.
        round_lengths (Sequence[int]): Iterations of every round.
        val_begin (int): First iteration of a round that may be validated.
            Defaults to 1.
        val_interval (int): Iterations between validations. Defaults to
            1000.

    Raises:
        TypeError: If a config is something else already.
        ValueError: If anything in the config cannot work.
    """

    state_key: str = ''
    """Name of the loop's own values in a checkpoint."""

    def __init__(self,
                 runner: Runner,
                 dataloader: Dict,
                 round_lengths: Sequence[int],
                 val_begin: int = 1,
                 val_interval: int = 1000) -> None:
        check_runner(runner)
        check_count(val_interval, 'train_cfg.val_interval')
        self.round_lengths = list(round_lengths)
        self._ends = list(accumulate(self.round_lengths))
        self._loader_config = dict(dataloader)
        self._optim_config = copy.deepcopy(runner.optim_wrapper)
        self._schedule_config = copy.deepcopy(runner.param_schedulers)
        check_accumulation(self._optim_config, self.round_lengths)
        self._schedules(self.round_lengths.index(min(self.round_lengths)))
        super().__init__(runner, dataloader, self._ends[-1], val_begin,
                         val_interval)
        self._first_loader = self.dataloader
        self.labeled = self.dataloader.dataset.datasets[0]
        self.round = 0
        self.state: Dict[str, Any] = {}
        # The runner builds the schedules of round 0 itself.
        runner.param_schedulers = self._schedules(0)
        runner.register_hook(_ResumedSchedulesHook(self))

    # What a method decides.

    @abstractmethod
    def round_loader(self, number: int) -> DataLoader:
        """Build the data loader of a round."""

    @abstractmethod
    def finish_round(self, number: int) -> None:
        """Do what follows a round, such as labelling; in every process.

        After a kill it runs again from the state of before.
        """

    @abstractmethod
    def restore_weights(self, number: int) -> None:
        """Set the weights that a round after the first starts from."""

    def schedule_config(self, number: int) -> Any:
        """Return the schedules of a round, as ``param_scheduler`` is."""
        return self._schedule_config

    def after_step(self, step: int) -> None:
        """Do something after a step of the round, counted from 1."""

    def after_validation(self, step: int, metrics: Dict[str, float]) -> None:
        """Look at the metrics of a validation."""

    def initial_state(self) -> Dict[str, Any]:
        """Return what checkpoints hold beside the base's values."""
        return {}

    def title(self, number: int) -> str:
        """Say in a few words what a round trains on."""
        return f'round {number + 1} of {len(self.round_lengths)}'

    # The loop.

    def run(self) -> nn.Module:
        """Launch the training of all rounds."""
        runner = self.runner
        self._restore_state()
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        self._open_stream(self._step)
        self._log('starts' if self._step == 0 else 'continues')
        if self._iter > 0 and not self.state['finished']:
            self._finish_iter()
        while self._iter < self._max_iters:
            runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._finish_iter()
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    @property
    def _step(self) -> int:
        """int: Iterations of the current round."""
        return self._iter - (self._ends[self.round - 1] if self.round else 0)

    def _finish_iter(self) -> None:
        step, length = self._step, self.round_lengths[self.round]
        self.after_step(step)
        due = step >= self.val_begin and step % self.val_interval == 0
        # After a resume it may be done already.
        if (self.runner.val_loop is not None and (due or step == length)
                and self.state['validated'] < self._iter):
            self.after_validation(step, self.runner.val_loop.run())
            self.state['validated'] = self._iter
        if step < length:
            return
        self._save_checkpoint()
        self._log('ended')
        self.finish_round(self.round)
        self._publish_state()
        if self.round + 1 < len(self.round_lengths):
            self._begin_round(self.round + 1)
        else:
            self.state['finished'] = True
            self._save_checkpoint(again=True)

    def _begin_round(self, number: int) -> None:
        runner = self.runner
        self.round = number
        # Ends the workers of the round before, even persistent ones.
        self.dataloader_iterator = self.dataloader = self._first_loader = None
        self.dataloader = self.round_loader(number)
        self.restore_weights(number)
        self._share_weights()
        runner.param_schedulers = self._schedules(number)
        runner.optim_wrapper = runner.build_optim_wrapper(
            copy.deepcopy(self._optim_config))
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if runner.param_schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(
                runner.param_schedulers)
        runner.optim_wrapper.initialize_count_status(runner.model, self._iter,
                                                     self._max_iters)
        self._open_stream(0)
        self._log('starts')

    def _open_stream(self, step: int) -> None:
        if step:
            self.dataloader.sampler.skip(step * self.dataloader.batch_size)
        self.dataloader_iterator = _InfiniteDataloaderIterator(
            self.dataloader)

    def _schedules(self, number: int) -> Any:
        return schedules_of(
            self.schedule_config(number), self.round_lengths[number])

    def resume_schedules(self, iteration: int) -> None:
        """Build the schedules of the round that a checkpoint is of.

        Args:
            iteration (int): Iterations that the checkpoint has seen.
        """
        number = bisect.bisect_left(self._ends, iteration)
        # Other lengths than the checkpoint's are refused later.
        schedules = self._schedules(min(number, len(self._ends) - 1))
        if schedules is not None:
            schedules = self.runner.build_param_scheduler(schedules)
        self.runner.param_schedulers = schedules

    def _log(self, what: str) -> None:
        text = self.title(self.round)
        print_log(
            f'{text[:1].upper()}{text[1:]} {what} at iteration {self._iter} '
            f'of {self._max_iters}.',
            logger='current')

    # State and files.

    def _restore_state(self) -> None:
        hub = self.runner.message_hub
        lengths = dict(round_lengths=self.round_lengths)
        if self._iter == 0:
            self.state = dict(
                lengths,
                seed=self._first_loader.sampler.seed,
                load_from=None
                if self.runner._resume else self.runner._load_from,
                validated=0,
                finished=False)
            self.state.update(self.initial_state())
            self._publish_state()
        else:
            self.state = hub.runtime_info.get(self.state_key)
            if self.state is None:
                raise ValueError(
                    'The checkpoint to resume from was not written by '
                    f'train_cfg.type={type(self).__name__}. Use it as '
                    'load_from, without resume.')
            if self.state['round_lengths'] != self.round_lengths:
                raise ValueError(
                    f'The checkpoint to resume from had rounds of '
                    f"{self.state['round_lengths']} iterations, train_cfg "
                    f'has {self.round_lengths}. Resume with the config of '
                    'the start.')
        self._first_loader.sampler.seed = self.state['seed']
        self.round = bisect.bisect_left(self._ends, self._iter)
        self.dataloader = self.round_loader(self.round)

    def _publish_state(self) -> None:
        self.runner.message_hub.update_info(self.state_key, self.state)

    def _save_checkpoint(self, again: bool = False) -> None:
        """Write a checkpoint, unless there is one of this iteration."""
        meta = dict(epoch=self.runner.epoch, iter=self._iter)
        for hook in self.runner.hooks:
            if (not isinstance(hook, CheckpointHook) or hook.by_epoch
                    or hook.interval <= 0):
                continue
            name = hook.filename_tmpl.format(self._iter)
            if again or osp.basename(hook.last_ckpt or '') != name:
                hook._save_checkpoint_with_step(self.runner, self._iter, meta)

    # Data and model.

    def stream_seed(self, number: int) -> int:
        """Return the seed of a round's data; round 0 has the sampler's."""
        if number == 0:
            return self.state['seed']
        return self._seed(DATA_STREAM, number)

    def _seed(self, *words: int) -> int:
        return int(
            np.random.SeedSequence(self.state['seed'],
                                   spawn_key=words).generate_state(1)[0])

    def build_loader(self,
                     datasets: List[BaseDataset],
                     source_ratio: Sequence[float],
                     seed: int,
                     batch_size: Optional[int] = None) -> DataLoader:
        """Build a data loader like that of the config over other sources.

        Args:
            datasets (list[BaseDataset]): The sources.
            source_ratio (Sequence[float]): Their shares of a batch.
            seed (int): Of the sampler.
            batch_size (int, optional): Defaults to None: the config's.

        Returns:
            DataLoader: The data loader.
        """
        config = dict(self._loader_config)
        sources = dict(config['dataset'], datasets=datasets)
        sources.pop('type')
        config['dataset'] = MultiSourceDataset(**sources)
        config['sampler'] = dict(
            config['sampler'], source_ratio=list(source_ratio), seed=seed)
        if batch_size is not None:
            config['batch_size'] = batch_size
            config['sampler']['batch_size'] = batch_size
        return self.runner.build_dataloader(config, seed=self.runner.seed)

    @property
    def model(self) -> nn.Module:
        """nn.Module: The model without distributed wrappers."""
        return bare_model(self.runner.model)

    def _share_weights(self) -> None:
        for value in self.model.state_dict().values():
            broadcast(value)


class _ResumedSchedulesHook(Hook):
    """Let the runner load a round's schedules into ones of their kind.

    It builds those of round 0, and would load into them what a checkpoint
    of another round has.
    """

    def __init__(self, loop: RoundLoop) -> None:
        self.loop = loop

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Build the schedules before their state is loaded."""
        if runner._resume:
            self.loop.resume_schedules(checkpoint['meta']['iter'])
