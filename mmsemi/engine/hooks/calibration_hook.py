# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Measure how right a teacher's confidence is, again and again."""
import time
from contextlib import ExitStack
from typing import List, Optional

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.utils import ProgressBar
from torch.utils.data import DataLoader

from mmsemi.methods import MultiViewModel
from mmsemi.models.evaluation_mode import evaluating
from mmsemi.pseudo_labels import (CalibrationStage, PseudoLabelPipeline,
                                  load_calibration)
from mmsemi.registry import HOOKS


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Fit the calibration stages of the pseudo-label pipeline.

    The teacher labels held-out labelled images as it labels unlabelled ones;
    what comes to each :class:`CalibrationStage` is compared with the ground
    truth, and the stage's calibrator is fitted to it. This happens before
    the first pseudo-label is used and at every interval from then on,
    because a teacher that follows its student does not stay as it was.

    The images must not have been learned by the teacher: it is far surer,
    and far more often right, on those. ``split_coco.py --hold-out`` makes
    such a part. Nor may they be those of the evaluation.

    Where labels are too few to hold any out, ``statistics`` names a file
    that ``tools/analysis/cross_fit_calibration.py`` has written: of two
    teachers, each measured on the half that the other was trained on. The
    training starts with them, and without ``dataloader`` they stay. They are
    right for a teacher of the same recipe, trained on one or both halves, as
    long as it does not change: with ``guided_steps``, or frozen.

    In :class:`CPS`, where networks teach each other, each one is measured
    and corrected by itself, for the labels that it gives. It is measured in
    evaluation mode; how sure labels of training mode are, which is its
    default, may differ from that.

    Where the images tell how frequent their classes are (``frequency`` of
    :class:`LVISV1FederatedDataset`), classes lean on those that are as rare,
    unless ``calibrator.groups`` says otherwise.

    A checkpoint has statistics and maps; a resumed training goes on with
    them. All processes share the images and find the same maps.

    Args:
        dataloader (dict, optional): Of the held-out images, one sample each,
            with annotations. Its pipeline must load annotations before the
            image changes its size. The sampler defaults to all images in
            order. Defaults to None: nothing is measured.
        interval (int): Iterations between two measurements. Defaults to
            2000.
        decay (float): What earlier statistics count at a new measurement,
            in [0, 1]: 0.5 makes one measurement the half-life, 0 forgets.
            Defaults to 0.5.
        statistics (str, optional): File to start with, instead of a first
            measurement. Defaults to None.

    Raises:
        FileNotFoundError: If there is no file ``statistics``.
        TypeError: If the model gives no pseudo-labels.
        ValueError: If an argument is out of range, there is neither
            ``dataloader`` nor ``statistics``, the pipeline has no
            calibration stage, its number of classes is another than that of
            the images or of the file, or a calibrator misses what
            :class:`ClassPrototypeHook` measures.
    """

    # After the teacher's update, before the checkpoint.
    priority = 'NORMAL'

    def __init__(self,
                 dataloader: Optional[dict] = None,
                 interval: int = 2000,
                 decay: float = 0.5,
                 statistics: Optional[str] = None) -> None:
        name = type(self).__name__
        if isinstance(interval, bool) or not isinstance(
                interval, int) or interval < 1:
            raise ValueError(f'{name}.interval={interval!r}; allowed are '
                             'whole numbers from 1.')
        if not 0 <= decay <= 1:
            raise ValueError(f'{name}.decay={decay!r}; allowed are numbers '
                             'from 0 to 1.')
        if dataloader is None and statistics is None:
            raise ValueError(f'{name} needs dataloader, statistics or both.')
        if dataloader is None and (interval, decay) != (2000, 0.5):
            raise ValueError(f'{name}.interval and decay have no effect '
                             'without dataloader: nothing is measured.')
        self.dataloader = None if dataloader is None else dict(dataloader)
        self.interval = interval
        self.decay = decay
        self.statistics = statistics
        self._fitted = False
        self._loader: Optional[DataLoader] = None

    def before_train(self, runner: Runner) -> None:
        """Build the data loader; start with the file, or measure."""
        model = labeling_model(runner, type(self).__name__)
        stages = calibration_stages(model)
        for stage in stages:
            # Not after a burn-in of hours.
            stage.calibrator.check_similarity()
        if self.dataloader is not None:
            self._loader = build_calibration_loader(runner, self.dataloader)
            check_calibration_images(stages, self._loader)
        self._fitted = all(
            bool(stage.calibrator.active) for stage in stages)
        if self._fitted:
            return
        if self._loader is not None:
            set_class_groups(stages, self._loader)
        if self.statistics is not None:
            begin = time.perf_counter()
            load_calibration(stages, self.statistics)
            self._fitted = True
            self._report(stages, time.perf_counter() - begin)
        elif not model.burning_in:
            self.calibrate(model)

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Measure if the loop ended the supervised stage just now."""
        if self._fitted:
            return
        model = labeling_model(runner, type(self).__name__)
        if not model.burning_in:
            self.calibrate(model)

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Measure at the interval, and at the end of a burn-in."""
        due = self.every_n_train_iters(runner, self.interval)
        if self._loader is None or self._fitted and not due:
            return
        model = labeling_model(runner, type(self).__name__)
        if not model.burning_in:
            self.calibrate(model)

    @torch.no_grad()
    def calibrate(self, model: MultiViewModel) -> None:
        """Measure once and fit.

        Args:
            model (MultiViewModel): With calibration stages.
        """
        begin = time.perf_counter()
        stages = calibration_stages(model)
        if self._fitted:
            for stage in stages:
                stage.calibrator.decay(self.decay)
        measure_calibration(model, self._loader, not self._fitted)
        for stage in stages:
            stage.calibrator.fit()
        self._fitted = True
        self._report(stages, time.perf_counter() - begin)

    def _report(self, stages: List[CalibrationStage], seconds: float) -> None:
        for stage in stages:
            calibrator = stage.calibrator
            count = calibrator.statistics[..., 0].sum(1)
            error = calibrator.calibration_error()
            signed = calibrator.calibration_error(signed=True)
            print_log(
                f'{type(stage).__name__}: {float(count.sum()):.0f} '
                f'predictions, {int((count > 0).sum())} of {len(count)} '
                f'classes; calibration error {float(error.nanmean()):.3f}, '
                f'signed {float(signed.nanmean()):+.3f} ({seconds:.1f} s).',
                logger='current')


def labeling_model(runner: Runner, user: str) -> MultiViewModel:
    """Return the runner's model without distributed wrappers.

    Args:
        runner (Runner): The runner.
        user (str): Who needs the model, for the message.

    Returns:
        MultiViewModel: With ``predict_unfiltered``.

    Raises:
        TypeError: If it gives no pseudo-labels.
    """
    model = runner.model
    while is_model_wrapper(model):
        model = model.module
    if not hasattr(model, 'predict_unfiltered'):
        raise TypeError(
            f'{user} needs a model that gives pseudo-labels, such as mmsemi.'
            'SemiInstanceSegmentor or mmsemi.CPS, but model.type is '
            f'{type(model).__name__}.')
    return model


def label_pipelines(model: MultiViewModel) -> List[PseudoLabelPipeline]:
    """Return the pipelines of all networks that label."""
    several = getattr(model, 'pseudo_label_pipelines', None)
    return [model.pseudo_label_pipeline] if several is None else list(several)


def calibration_stages(model: MultiViewModel) -> List[CalibrationStage]:
    """Return the calibration stages of a model, in order.

    Raises:
        ValueError: If it has none.
    """
    stages = [
        stage for pipeline in label_pipelines(model)
        for stage in pipeline.stages if isinstance(stage, CalibrationStage)
    ]
    if not stages:
        raise ValueError(
            'The calibration needs mmsemi.CalibrateScores or mmsemi.'
            'CalibratePixels in model.pseudo_label_pipeline.')
    return stages


def build_calibration_loader(runner: Runner, config: dict) -> DataLoader:
    """Build the data loader of held-out images.

    Args:
        runner (Runner or type): The runner, or its class.
        config (dict): Of the data loader.

    Returns:
        DataLoader: By default all images in order.
    """
    config = dict(config)
    # A sampler that repeats images to even out processes would count them
    # twice.
    config.setdefault(
        'sampler', dict(type='DefaultSampler', shuffle=False, round_up=False))
    config.setdefault('collate_fn', dict(type='pseudo_collate'))
    loader = runner.build_dataloader(config)
    # Its own: the random states of a training must not depend on whether it
    # was resumed.
    loader.generator = torch.Generator()
    return loader


@torch.no_grad()
def measure_calibration(model: MultiViewModel,
                        loader: DataLoader,
                        show: bool = False) -> None:
    """Count how often the labels of held-out images are right.

    Args:
        model (MultiViewModel): With calibration stages, whose calibrators
            get the counts and are not fitted.
        loader (DataLoader): Of annotated images.
        show (bool): Whether to show a progress bar. Defaults to False.
    """
    preprocess = model.data_preprocessor.data_preprocessor
    pipelines = label_pipelines(model)
    bar = ProgressBar(len(loader)) if show and is_main_process() else None
    with ExitStack() as modes:
        for pipeline in pipelines:
            # Thresholds that follow the teacher must not follow it here.
            modes.enter_context(evaluating(pipeline))
        for data in loader:
            batch = preprocess(data, False)
            samples = batch['data_samples']
            predicted = model.predict_unfiltered(batch['inputs'], samples)
            if not hasattr(model, 'pseudo_label_pipelines'):
                predicted = [predicted]
            for pipeline, labels in zip(pipelines, predicted):
                for stage in pipeline.stages:
                    if isinstance(stage, CalibrationStage):
                        seen = pipeline(labels, samples, end=stage)
                        stage.observe(seen, samples)
            if bar is not None:
                bar.update()
    if bar is not None:
        print()


def set_class_groups(stages: List[CalibrationStage],
                     loader: DataLoader) -> None:
    """Let classes lean on those that are as frequent, in LVIS."""
    frequency = loader.dataset.metainfo.get('frequency')
    if frequency is None:
        return
    groups = ['rcf'.index(letter) for letter in frequency]
    for stage in stages:
        if not bool(stage.calibrator.groups.any()):
            stage.calibrator.set_groups(groups)


def check_calibration_images(stages: List[CalibrationStage],
                             loader: DataLoader) -> None:
    """Raise ValueError if images and stages do not fit."""
    classes = loader.dataset.metainfo.get('classes') or ()
    for stage in stages:
        known = stage.calibrator.num_classes
        if classes and len(classes) != known:
            raise ValueError(
                f'{type(stage).__name__}.calibrator.num_classes={known}, '
                f'but the images of the calibration have {len(classes)} '
                'classes.')
    if len(loader.dataset) == 0:
        raise ValueError('There are no images to calibrate on.')
