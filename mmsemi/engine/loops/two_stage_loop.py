# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Supervised training, then training with pseudo-labels, in one run."""
import os
import os.path as osp
from typing import Any, Dict, Mapping, Optional, Sequence, Union

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import nn
from torch.utils.data import DataLoader

from mmsemi.datasets.samplers import check_batch_size
from mmsemi.methods import SemInst
from mmsemi.registry import LOOPS
from .round_checks import bare_model, check_count, schedules_of
from .round_loop import RoundLoop

STAGE_ONE_FILE = 'stage1.pth'


@LOOPS.register_module()
class TwoStageTrainLoop(RoundLoop):
    """Both stages of :class:`mmsemi.SemInst` as one training.

    Stage 1 trains the student on the first source of ``train_dataloader``,
    the labelled images, alone. Its weights are kept as ``stage1.pth`` in the
    work folder, a plain checkpoint of mmdet's model. Then the student becomes
    its own teacher, and stage 2 trains it on all sources, with a new
    optimizer and a schedule from its beginning.

    A stage is a round of :class:`RoundLoop`, which see for schedules,
    validation and resume; iterations are counted over both.

    Args:
        runner (Runner): The runner.
        dataloader (dict): ``train_dataloader`` of stage 2: a
            ``mmsemi.MultiSourceDataset`` of labelled images, first, and
            unlabelled ones, with ``mmsemi.MultiSourceSampler``.
        stage1_iters (int): Iterations of stage 1. 0 leaves it out: then
            ``load_from`` names its result, such as the ``stage1.pth`` of
            another run.
        stage2_iters (int): Iterations of stage 2, at least 1.
        stage1_batch_size (int, optional): Labelled images per batch and
            process in stage 1. Defaults to None: as many images as
            ``train_dataloader.batch_size``.
        stage2_param_scheduler (dict or list[dict], optional): Schedules of
            stage 2; their iterations count from its beginning, and an empty
            list keeps the rate of the optimizer. Defaults to None: those of
            ``param_scheduler``, which is written for stage 1.
        val_begin (int): See :class:`RoundLoop`.
        val_interval (int): See :class:`RoundLoop`.

    Raises:
        TypeError: If the model has no two stages or a config is something
            else already.
        ValueError: If anything in the config cannot work.
    """

    state_key = 'two_stage_training'

    def __init__(self,
                 runner: Runner,
                 dataloader: Dict,
                 stage1_iters: int,
                 stage2_iters: int,
                 stage1_batch_size: Optional[int] = None,
                 stage2_param_scheduler: Optional[Union[dict,
                                                        Sequence]] = None,
                 val_begin: int = 1,
                 val_interval: int = 1000) -> None:
        check_count(stage1_iters, 'train_cfg.stage1_iters', least=0)
        check_count(stage2_iters, 'train_cfg.stage2_iters')
        if stage1_batch_size is not None:
            check_count(stage1_batch_size, 'train_cfg.stage1_batch_size')
        model = bare_model(runner.model)
        if not isinstance(model, SemInst):
            raise TypeError(
                'mmsemi.TwoStageTrainLoop (train_cfg.type) needs a model of '
                'two stages, mmsemi.SemInst, but model.type is '
                f'{type(model).__name__}.')
        if stage1_iters == 0 and runner._load_from is None:
            raise ValueError(
                'train_cfg.stage1_iters=0 leaves out the supervised stage, '
                'so load_from must name the checkpoint that it ended with.')
        check_two_sources(dataloader)
        self.stages = (1, 2) if stage1_iters else (2, )
        self.stage2_param_scheduler = stage2_param_scheduler
        self.stage1_batch_size = stage1_batch_size
        if stage2_param_scheduler is not None:
            schedules_of(stage2_param_scheduler, stage2_iters)
        lengths = [stage1_iters, stage2_iters][-len(self.stages):]
        super().__init__(runner, dataloader, lengths, val_begin,
                         val_interval)
        check_batch_size(self.dataloader)
        self.sources = self.dataloader.dataset.datasets
        self.source_ratio = self.dataloader.sampler.source_ratio
        if self.stages[0] == 1:
            # Ends the workers of the other one.
            self.dataloader_iterator = None
            self._first_loader = self.dataloader = self._labeled_loader(
                self.dataloader.sampler.seed)

    def schedule_config(self, number: int) -> Any:
        """Return the schedules of a stage."""
        if self.stages[number] == 2 and \
                self.stage2_param_scheduler is not None:
            return self.stage2_param_scheduler
        return super().schedule_config(number)

    def run(self) -> nn.Module:
        """Launch the training of both stages."""
        # Weights to start from may be of a training that ended in stage 2.
        if self._iter == 0 and self.stages[0] == 1:
            self.model.begin_stage_one()
        elif self._iter == 0:
            self.model.begin_stage_two()
        return super().run()

    def title(self, number: int) -> str:
        """Say what a stage trains on."""
        data = 'labelled images' if self.stages[number] == 1 else \
            'labelled and pseudo-labelled images'
        return f'stage {self.stages[number]} of 2 ({data})'

    def round_loader(self, number: int) -> DataLoader:
        """Build the data loader of a stage."""
        if number == 0:
            return self._first_loader
        return self.build_loader(self.sources, self.source_ratio,
                                 self.stream_seed(number))

    def restore_weights(self, number: int) -> None:
        """Go on from stage 1, with its result for a teacher."""
        self.model.begin_stage_two()

    def finish_round(self, number: int) -> None:
        """Keep what stage 1 ended with."""
        if self.stages[number] == 2:
            return
        path = osp.join(self.runner.work_dir, STAGE_ONE_FILE)
        if is_main_process():
            checkpoint = dict(
                meta=dict(
                    dataset_meta=self.dataloader.dataset.metainfo,
                    iter=self._iter),
                state_dict=weights_to_cpu(self.model.student.state_dict()))
            # As a whole or not at all.
            torch.save(checkpoint, path + '.tmp')
            os.replace(path + '.tmp', path)
        barrier()
        print_log(f'The weights of stage 1 are in {path}.', logger='current')

    def _labeled_loader(self, seed: int) -> DataLoader:
        return self.build_loader([self.labeled], [1], seed,
                                 self.stage1_batch_size)


def check_two_sources(dataloader: Any) -> None:
    """Refuse a ``train_dataloader`` without labelled and unlabelled images.

    Args:
        dataloader (Any): What the loop is given.

    Raises:
        TypeError: If it is no config.
        ValueError: If its data are of another kind.
    """
    if not isinstance(dataloader, Mapping):
        raise TypeError('train_dataloader must be a config dict, got '
                        f'{type(dataloader).__name__}.')
    kinds = []
    for key in ('dataset', 'sampler'):
        kind = (dataloader.get(key) or {}).get('type')
        kinds.append(str(getattr(kind, '__name__', kind)).split('.')[-1])
    sources = (dataloader.get('dataset') or {}).get('datasets') or ()
    if kinds != ['MultiSourceDataset', 'MultiSourceSampler'
                 ] or len(sources) < 2:
        raise ValueError(
            'Two stages need labelled and unlabelled images: '
            "train_dataloader=dict(dataset=dict(type='mmsemi."
            "MultiSourceDataset', datasets=[labelled, unlabelled]), sampler="
            "dict(type='mmsemi.MultiSourceSampler', batch_size=..., "
            f'source_ratio=[1, 1])). Found {" and ".join(kinds)} with '
            f'{len(sources)} sources.')
