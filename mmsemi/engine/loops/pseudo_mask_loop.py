# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Rounds of training that label images between them."""
import copy
import os
import os.path as osp
from typing import Dict, Mapping, Optional, Sequence

import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import barrier, broadcast, is_main_process
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn
from torch.utils.data import DataLoader

from mmsemi.datasets.multi_source import seeded
from .pseudo_mask_writer import LabelingSettings, PseudoMaskWriter
from .round_checks import check_count, check_dataloader, check_segmentor
from .round_data import (PseudoLabeledDataset, build_pseudo_pipeline,
                         build_unlabeled)
from .round_loop import WEIGHTS_STREAM, RoundLoop


class PseudoMaskLoop(RoundLoop):
    """Base of loops that write pseudo-masks between rounds.

    See :class:`RoundLoop` for schedules, validation and resume. Masks and
    weights of earlier rounds stay in
    ``work_dir/self_training/round_{k}``.

    With ``closing_iters`` a closing round follows, of no paper here: the
    weights that the rounds end with learn from the human labels alone, with
    a schedule of their own. What pseudo-labels taught wrong is corrected.

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
        closing_iters (int): Iterations of the closing round. Defaults to 0:
            there is none.
        val_begin (int): See :class:`RoundLoop`.
        val_interval (int): See :class:`RoundLoop`.

    Raises:
        TypeError: If a config is something else already.
        ValueError: If anything in the config cannot work.
    """

    state_key = 'self_training'

    def __init__(self,
                 runner: Runner,
                 dataloader: Dict,
                 round_lengths: Sequence[int],
                 unlabeled_dataset: Optional[Dict],
                 pseudo_pipeline: Optional[Sequence],
                 labeling: Optional[Mapping] = None,
                 closing_iters: int = 0,
                 val_begin: int = 1,
                 val_interval: int = 1000) -> None:
        check_dataloader(dataloader)
        check_segmentor(runner)
        check_count(closing_iters, 'train_cfg.closing_iters', least=0)
        self.rounds_before_closing = len(round_lengths)
        if closing_iters:
            round_lengths = [*round_lengths, closing_iters]
        super().__init__(runner, dataloader, round_lengths, val_begin,
                         val_interval)
        self.metainfo = self.dataloader.dataset.metainfo
        if len(self.metainfo.get('classes') or ()) > 255:
            raise ValueError('Pseudo-masks hold at most 255 classes, the '
                             f"dataset has {len(self.metainfo['classes'])}.")
        self.writer = PseudoMaskWriter(
            build_unlabeled(unlabeled_dataset),
            LabelingSettings.from_config(labeling))
        self.pseudo_pipeline = build_pseudo_pipeline(pseudo_pipeline)
        self.all_unlabeled = list(range(len(self.writer.images)))

    def closes(self, number: int) -> bool:
        """Return whether a round is the closing one."""
        return number == self.rounds_before_closing

    def needs_labels(self, number: int) -> bool:
        """Return whether a round that learns from new labels follows."""
        return number + 1 < self.rounds_before_closing

    def closing_loader(self) -> DataLoader:
        """Build the data loader of the closing round."""
        return self.build_loader([self.labeled], [1],
                                 self.stream_seed(self.rounds_before_closing))

    def restore_weights(self, number: int) -> None:
        """Set the weights that a round after the first starts from."""
        if not self.closes(number):
            self.model.load_state_dict(self.fresh_weights(number))

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

    def pseudo_labeled(self, masks: Mapping[int, str]) -> BaseDataset:
        """Return the unlabelled images with these masks."""
        return PseudoLabeledDataset(self.writer.images, masks, self.metainfo,
                                    self.pseudo_pipeline.transforms)

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
