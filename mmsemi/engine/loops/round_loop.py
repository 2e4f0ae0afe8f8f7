# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Several trainings one after the other, in one run that can be resumed."""
import bisect
import copy
import os
import os.path as osp
from abc import abstractmethod
from itertools import accumulate
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import barrier, broadcast, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.checkpoint import load_checkpoint
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch import nn
from torch.utils.data import DataLoader

from mmsemi.datasets.multi_source import MultiSourceDataset, seeded
from .pseudo_mask_writer import LabelingSettings, PseudoMaskWriter
from .round_checks import (bare_model, check_accumulation, check_count,
                           check_dataloader, check_runner, schedules_of)
from .round_data import (PseudoLabeledDataset, build_pseudo_pipeline,
                         build_unlabeled)

STATE_KEY = 'self_training'
# Words of the seeds, so that data and fresh weights are independent.
DATA_STREAM, WEIGHTS_STREAM = 1, 2


class RoundLoop(IterBasedTrainLoop):
    """Base of loops that train in rounds and label images between them.

    Iterations are counted over all rounds. Every round has an optimizer,
    schedules and a data stream of its own: ``optim_wrapper`` and
    ``param_scheduler`` of the config are written for one round, and
    ``val_begin`` and ``val_interval`` count within a round, at whose end is
    always a validation. Round 0 is what the same config would do with
    ``IterBasedTrainLoop``.

    A checkpoint is written at the end of every round. Checkpoints hold, as
    ``self_training`` in mmengine's message hub, what a resume needs beside
    weights, optimizer and schedules; masks and weights of earlier rounds
    stay in ``work_dir/self_training/round_{k}``. A resumed training first
    makes up for what follows its last iteration: a validation, the
    labelling.

    Args:
        runner (Runner): The runner, made by ``Runner.from_cfg``.
        dataloader (dict): ``train_dataloader``: the labelled images, as
            only source of an ``mmsemi.MultiSourceDataset`` with
            ``mmsemi.MultiSourceSampler``.
        round_lengths (Sequence[int]): Iterations of every round.
        unlabeled_dataset (dict): Images to label, with a test pipeline
            without annotations.
        pseudo_pipeline (Sequence[dict]): Pipeline of pseudo-labelled images
            in training; it loads the mask with ``LoadAnnotations``.
        labeling (dict, optional): See :class:`LabelingSettings`.
        val_begin (int): First iteration of a round that may be validated.
            Defaults to 1.
        val_interval (int): Iterations between validations. Defaults to
            1000.

    Raises:
        TypeError: If a config is something else already.
        ValueError: If anything in the config cannot work.
    """

    def __init__(self,
                 runner: Runner,
                 dataloader: Dict,
                 round_lengths: Sequence[int],
                 unlabeled_dataset: Optional[Dict],
                 pseudo_pipeline: Optional[Sequence],
                 labeling: Optional[Mapping] = None,
                 val_begin: int = 1,
                 val_interval: int = 1000) -> None:
        check_dataloader(dataloader)
        check_runner(runner)
        check_count(val_interval, 'train_cfg.val_interval')
        self.round_lengths = list(round_lengths)
        self._ends = list(accumulate(self.round_lengths))
        self._loader_config = dict(dataloader)
        self._optim_config = copy.deepcopy(runner.optim_wrapper)
        self._schedule_config = copy.deepcopy(runner.param_schedulers)
        check_accumulation(self._optim_config, self.round_lengths)
        schedules_of(self._schedule_config, min(self.round_lengths))
        super().__init__(runner, dataloader, self._ends[-1], val_begin,
                         val_interval)
        self._first_loader = self.dataloader
        self.labeled = self.dataloader.dataset.datasets[0]
        self.metainfo = self.dataloader.dataset.metainfo
        if len(self.metainfo.get('classes') or ()) > 255:
            raise ValueError('Pseudo-masks hold at most 255 classes, the '
                             f"dataset has {len(self.metainfo['classes'])}.")
        self.writer = PseudoMaskWriter(
            build_unlabeled(unlabeled_dataset),
            LabelingSettings.from_config(labeling))
        self.pseudo_pipeline = build_pseudo_pipeline(pseudo_pipeline)
        self.all_unlabeled = list(range(len(self.writer.images)))
        self.round = 0
        self.state: Dict[str, Any] = {}
        # The runner builds the schedules of round 0 itself.
        runner.param_schedulers = self._schedules(0)

    # What a method decides.

    @abstractmethod
    def round_loader(self, number: int) -> DataLoader:
        """Build the data loader of a round."""

    @abstractmethod
    def finish_round(self, number: int) -> None:
        """Label images, choose, after a round; in every process.

        After a kill it runs again from the state of before.
        """

    def restore_weights(self, number: int) -> None:
        """Set the weights that a round after the first starts from."""
        self.model.load_state_dict(self.fresh_weights(number))

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
        return schedules_of(self._schedule_config, self.round_lengths[number])

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
            self.state = hub.runtime_info.get(STATE_KEY)
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
        self.runner.message_hub.update_info(STATE_KEY, self.state)

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

    def folder(self, number: int) -> str:
        """Return the folder of a round's files."""
        return osp.join(self.runner.work_dir, 'self_training',
                        f'round_{number}')

    def save_weights(self, path: str) -> None:
        """Write the current weights as a whole or not at all."""
        if is_main_process():
            os.makedirs(osp.dirname(path), exist_ok=True)
            torch.save(self.model.state_dict(), path + '.tmp')
            os.replace(path + '.tmp', path)
        barrier()

    @staticmethod
    def load_weights(path: str) -> Dict[str, torch.Tensor]:
        """Read weights of :meth:`save_weights`."""
        if not osp.isfile(path):
            raise FileNotFoundError(
                f'The weights {path} of an earlier round are missing. Resume '
                'from a checkpoint of that round, or start anew.')
        return torch.load(path, map_location='cpu', weights_only=True)

    # Data and models.

    def stream_seed(self, number: int) -> int:
        """Return the seed of a round's data; round 0 has the sampler's."""
        if number == 0:
            return self.state['seed']
        return self._seed(DATA_STREAM, number)

    def _seed(self, *words: int) -> int:
        return int(
            np.random.SeedSequence(self.state['seed'],
                                   spawn_key=words).generate_state(1)[0])

    def pseudo_labeled(self, masks: Mapping[int, str]) -> BaseDataset:
        """Return the unlabelled images with these masks."""
        return PseudoLabeledDataset(self.writer.images, masks, self.metainfo,
                                    self.pseudo_pipeline.transforms)

    def build_loader(self, datasets: List[BaseDataset],
                     source_ratio: Sequence[float], seed: int) -> DataLoader:
        """Build a data loader like that of round 0 over other sources."""
        config = dict(self._loader_config)
        sources = dict(config['dataset'], datasets=datasets)
        sources.pop('type')
        config['dataset'] = MultiSourceDataset(**sources)
        config['sampler'] = dict(
            config['sampler'], source_ratio=list(source_ratio), seed=seed)
        return self.runner.build_dataloader(config, seed=self.runner.seed)

    @property
    def model(self) -> nn.Module:
        """nn.Module: The segmenter without distributed wrappers."""
        return bare_model(self.runner.model)

    def new_model(self, seed: int = 0) -> nn.Module:
        """Build another segmenter; the random states stay as they are."""
        with seeded(seed):
            return MODELS.build(copy.deepcopy(self.runner.cfg.model))

    def fresh_weights(self, number: int) -> Dict[str, torch.Tensor]:
        """Return weights as at the start of a training, newly drawn.

        Args:
            number (int): The round that starts; each has its own draw.

        Returns:
            dict[str, Tensor]: With pre-trained parts and ``load_from``.
        """
        seed = self._seed(WEIGHTS_STREAM, number)
        model = self.new_model(seed)
        with seeded(seed):
            model.init_weights()
        if self.state['load_from'] is not None:
            load_checkpoint(
                model,
                self.state['load_from'],
                map_location='cpu',
                revise_keys=[(r'^module\.', '')])
        return model.state_dict()

    def teacher(self, weights: Optional[str] = None) -> nn.Module:
        """Return a copy of the segmenter, the same in every process.

        Args:
            weights (str, optional): File of :meth:`save_weights`. Defaults
                to None: the current weights.

        Returns:
            nn.Module: In eval mode, on the device of training.
        """
        # In eval mode they are the same, and a CPU knows only one.
        model = revert_sync_batchnorm(self.new_model())
        model.load_state_dict(self.model.state_dict(
        ) if weights is None else self.load_weights(weights))
        model.to(next(self.model.parameters()).device)
        for value in model.state_dict().values():
            broadcast(value)
        return model.eval()

    def _share_weights(self) -> None:
        for value in self.model.state_dict().values():
            broadcast(value)
