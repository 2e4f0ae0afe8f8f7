# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import List, Optional, Set, Tuple

import torch
from mmengine.dataset import Compose
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from mmsemi.datasets.samplers import MultiSourceSampler
from mmsemi.methods.cafs import (CAFS, CRITERIA, ConfidenceHistogram,
                                 oversampling_weights)
from mmsemi.methods.iterative_self_training import held_out_slice
from mmsemi.models.dense_forward import num_classes
from mmsemi.models.dense_prediction import predict_dense
from mmsemi.registry import HOOKS
from mmsemi.structures.dense_pseudo_label import IGNORE_LABEL
from .training_check_hook import index_sampler

CHECKPOINT_KEY = 'mmsemi_class_thresholds'
# Batches that loader workers may have asked for already, at most.
PREFETCHED = 64


@HOOKS.register_module()
class ClassThresholdHook(Hook):
    """Hold labelled images out and set class thresholds by them (CAFS).

    Held-out images are not drawn for training; with few labels, which need
    every one of them, ``release_at`` ends that. At every interval the
    teacher (or the student that labels for itself) predicts them as in
    validation; thresholds and, on request, sampling weights of the other
    labelled images follow (see :mod:`mmsemi.methods.cafs`). Weights hold from
    64 batches later on, beyond what loader workers have prefetched, so that a
    resumed training draws the same images.

    Args:
        interval (int): Iterations between two measurements.
        held_out_share (float): Share of the labelled images, in (0, 1).
            Defaults to 0.2.
        precision (float): See :meth:`ConfidenceHistogram.thresholds`.
            Defaults to 0.9.
        min_pixels (int): See there. Defaults to 100.
        default (float): See there. Defaults to 0.95.
        limits (tuple[float, float]): See there. Defaults to (0.5, 0.99).
        criterion (str): See there. Defaults to 'calibrated'.
        release_at (int, optional): Iteration of the last measurement, after
            which thresholds stay and held-out images are trained on, too.
            Later than the burn-in. Defaults to None: never.
        momentum (float): Share of a measurement in the thresholds, in
            (0, 1]; the first one replaces them. Defaults to 0.1.
        oversample (bool): Whether to draw images of bad classes more often.
            Defaults to True.
        seed (int): Seed of the held-out slice. Defaults to 0.

    Raises:
        TypeError: If the model or the sampler is of another kind.
        ValueError: If an argument is out of range or no image would be held
            out.
    """

    # After the teacher's update, before the checkpoint.
    priority = 'NORMAL'

    def __init__(self,
                 interval: int,
                 held_out_share: float = 0.2,
                 precision: float = 0.9,
                 min_pixels: int = 100,
                 default: float = 0.95,
                 limits: Tuple[float, float] = (0.5, 0.99),
                 criterion: str = 'calibrated',
                 release_at: Optional[int] = None,
                 momentum: float = 0.1,
                 oversample: bool = True,
                 seed: int = 0) -> None:
        name = type(self).__name__
        if isinstance(interval, bool) or not isinstance(
                interval, int) or interval < 1:
            raise ValueError(f'{name}.interval={interval!r}; allowed are '
                             'whole numbers from 1.')
        for field, value in (('held_out_share', held_out_share),
                             ('precision', precision), ('momentum',
                                                        momentum)):
            if not 0 < value <= 1:
                raise ValueError(f'{name}.{field}={value!r}; allowed are '
                                 'numbers above 0 up to 1.')
        if not 0 <= default <= 1:
            raise ValueError(f'{name}.default={default!r}; allowed are '
                             'numbers from 0 to 1.')
        if not 0 <= limits[0] <= limits[1] <= 1:
            raise ValueError(f'{name}.limits={limits!r}; allowed are two '
                             'numbers, 0 <= low <= high <= 1.')
        if criterion not in CRITERIA:
            raise ValueError(f'{name}.criterion={criterion!r}; allowed are '
                             f'{CRITERIA}.')
        if release_at is not None and (isinstance(release_at, bool)
                                       or not isinstance(release_at, int)):
            raise TypeError(f'{name}.release_at={release_at!r}; allowed are '
                            'whole numbers and None.')
        self.interval = interval
        self.release_at = release_at
        self.held_out_share = held_out_share
        self.thresholds = dict(
            precision=precision,
            min_pixels=min_pixels,
            default=default,
            limits=tuple(limits),
            criterion=criterion)
        self.momentum = momentum
        self.oversample = oversample
        self.seed = seed
        self.held_out: List[int] = []
        self._measured = 0
        self._weights: List[Tuple[int, list]] = []
        self._loaded: Optional[dict] = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note the state of a checkpoint."""
        self._loaded = checkpoint.get(CHECKPOINT_KEY)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the state into the checkpoint."""
        checkpoint[CHECKPOINT_KEY] = dict(
            measured=self._measured, weights=self._weights)

    def before_train(self, runner: Runner) -> None:
        """Choose the held-out images."""
        burn_in = self._model(runner).teacher_settings.burn_in_steps
        if self.release_at is not None and self.release_at <= burn_in:
            raise ValueError(
                f'ClassThresholdHook.release_at={self.release_at}; it must '
                f'be above teacher.burn_in_steps={burn_in}, before which '
                'nothing is measured.')
        sampler = index_sampler(runner.train_dataloader)
        if not isinstance(sampler, MultiSourceSampler):
            raise TypeError('ClassThresholdHook needs mmsemi.'
                            'MultiSourceSampler in train_dataloader, got '
                            f'{type(sampler).__name__}.')
        self._check_workers(runner.train_dataloader)
        source = runner.train_dataloader.dataset.datasets[0]
        val = (runner.cfg.get('val_dataloader') or {}).get('dataset') or {}
        if 'pipeline' not in val:
            raise ValueError('ClassThresholdHook predicts held-out images '
                             'with val_dataloader.dataset.pipeline, which '
                             'the config does not have.')
        self._pipeline = Compose(list(val['pipeline']))
        count = round(len(source) * self.held_out_share)
        if not 0 < count < len(source):
            raise ValueError(
                f'ClassThresholdHook.held_out_share={self.held_out_share} of '
                f'{len(source)} labelled images are {count}; at least 1 must '
                'be held out and 1 must stay.')
        classes = [
            self._classes(self._load(source, i)) for i in range(len(source))
        ]
        self.held_out = held_out_slice(classes, self.held_out_share,
                                       self.seed)
        self._present = torch.zeros(
            (len(source), num_classes(self._model(runner).student)),
            dtype=torch.bool)
        for row, found in zip(self._present, classes):
            row[list(found)] = True
        kept = torch.ones(len(source))
        kept[self.held_out] = 0
        self._measured, self._weights = 0, [(0, kept.tolist())]
        if runner.iter > 0 and self._loaded is not None:
            self._measured = self._loaded['measured']
            self._weights = [(int(position), list(weights))
                             for position, weights in self._loaded['weights']]
        for position, weights in self._weights:
            sampler.set_weights(0, weights, position)
        print_log(
            f'{len(self.held_out)} of {len(source)} labelled images are held '
            'out for class thresholds.',
            logger='current')

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Measure, and set thresholds and weights."""
        model = self._model(runner)
        iteration = runner.iter + 1
        releases = iteration == self.release_at
        if not (releases or iteration % self.interval == 0):
            return
        if model.burning_in or (self.release_at is not None
                                and iteration > self.release_at):
            return
        histogram = self._measure(runner, model)
        thresholds = histogram.thresholds(**self.thresholds)
        for stage in model.threshold_stages:
            stage.move_thresholds(thresholds,
                                  self.momentum if self._measured else 1.)
        self._measured += 1
        if self.oversample or releases:
            self._set_weights(runner, histogram.iou(), releases)
        listed = ', '.join(f'{value:.2f}' for value in thresholds.tolist())
        print_log(f'Class thresholds measured: {listed}', logger='current')

    @torch.no_grad()
    def _measure(self, runner: Runner, model: CAFS) -> ConfidenceHistogram:
        source = runner.train_dataloader.dataset.datasets[0]
        device = next(model.parameters()).device
        histogram = ConfidenceHistogram(
            num_classes(model.student), device=device)
        preprocess = model.data_preprocessor.data_preprocessor
        with model.labeling() as labeler:
            for index in self.held_out[get_rank()::get_world_size()]:
                data = self._load(source, index)
                batch = preprocess(
                    dict(
                        inputs=[data['inputs']],
                        data_samples=[data['data_samples']]), False)
                sample, = predict_dense(labeler, batch['inputs'],
                                        batch['data_samples'])
                prob = sample.seg_logits.data.float().softmax(0)
                histogram.update(*prob.max(0),
                                 sample.gt_sem_seg.data[0].to(device))
        histogram.reduce()
        return histogram

    def _set_weights(self, runner: Runner, iou: torch.Tensor,
                     with_held_out: bool) -> None:
        kept = torch.ones(len(self._present), dtype=torch.float64)
        if not with_held_out:
            kept[self.held_out] = 0
        weights = kept
        if self.oversample:
            weights = oversampling_weights(self._present, iou.cpu()) * kept
            if weights.sum() == 0:
                weights = kept
        sampler = index_sampler(runner.train_dataloader)
        position = (runner.iter + 1 + PREFETCHED) * sampler.batch_size
        self._weights.append((position, weights.tolist()))
        sampler.set_weights(0, weights.tolist(), position)

    @staticmethod
    def _check_workers(dataloader: DataLoader) -> None:
        ahead = dataloader.num_workers * (dataloader.prefetch_factor or 0)
        if ahead > PREFETCHED:
            raise ValueError(
                f'train_dataloader.num_workers={dataloader.num_workers} with '
                f'prefetch_factor={dataloader.prefetch_factor} ask for '
                f'{ahead} batches ahead; ClassThresholdHook allows '
                f'{PREFETCHED}, after which new sampling weights hold.')

    def _load(self, source: Dataset, index: int) -> dict:
        return self._pipeline(source.get_data_info(index))

    @staticmethod
    def _classes(data: dict) -> Set[int]:
        found = data['data_samples'].gt_sem_seg.data.unique().tolist()
        return set(found) - {IGNORE_LABEL}

    @staticmethod
    def _model(runner: Runner) -> CAFS:
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        if not isinstance(model, CAFS):
            raise TypeError('ClassThresholdHook needs a model of type '
                            'mmsemi.CAFS, but model.type is '
                            f'{type(model).__name__}.')
        return model
