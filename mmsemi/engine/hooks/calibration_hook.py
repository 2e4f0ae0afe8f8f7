# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Measure how right a teacher's confidence is, again and again."""
import time
from typing import List, Optional

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.utils import ProgressBar

from mmsemi.methods import TeacherStudent
from mmsemi.models.evaluation_mode import evaluating
from mmsemi.pseudo_labels import CalibrationStage
from mmsemi.registry import HOOKS
from .teacher_update_hook import teacher_student


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

    Where the images tell how frequent their classes are (``frequency`` of
    :class:`LVISV1FederatedDataset`), classes lean on those that are as rare,
    unless ``calibrator.groups`` says otherwise.

    A checkpoint has statistics and maps; a resumed training goes on with
    them. All processes share the images and find the same maps.

    Args:
        dataloader (dict): Of the held-out images, one sample each, with
            annotations. Its pipeline must load annotations before the image
            changes its size. The sampler defaults to all images in order.
        interval (int): Iterations between two measurements. Defaults to
            2000.
        decay (float): What earlier statistics count at a new measurement,
            in [0, 1]: 0.5 makes one measurement the half-life, 0 forgets.
            Defaults to 0.5.

    Raises:
        TypeError: If the model has no teacher and student.
        ValueError: If an argument is out of range, the pipeline has no
            calibration stage, or its number of classes is another than that
            of the images.
    """

    # After the teacher's update, before the checkpoint.
    priority = 'NORMAL'

    def __init__(self,
                 dataloader: dict,
                 interval: int = 2000,
                 decay: float = 0.5) -> None:
        name = type(self).__name__
        if isinstance(interval, bool) or not isinstance(
                interval, int) or interval < 1:
            raise ValueError(f'{name}.interval={interval!r}; allowed are '
                             'whole numbers from 1.')
        if not 0 <= decay <= 1:
            raise ValueError(f'{name}.decay={decay!r}; allowed are numbers '
                             'from 0 to 1.')
        self.dataloader = dict(dataloader)
        self.interval = interval
        self.decay = decay
        self._fitted = False

    def before_train(self, runner: Runner) -> None:
        """Build the data loader; measure if labelling starts at once."""
        model = teacher_student(runner, type(self).__name__)
        stages = self._stages(model)
        config = dict(self.dataloader)
        # A sampler that repeats images to even out processes would count
        # them twice.
        config.setdefault(
            'sampler',
            dict(type='DefaultSampler', shuffle=False, round_up=False))
        config.setdefault('collate_fn', dict(type='pseudo_collate'))
        self._loader = runner.build_dataloader(config)
        # Its own: the random states of a training must not depend on
        # whether it was resumed.
        self._loader.generator = torch.Generator()
        self._check_classes(stages)
        self._fitted = all(
            bool(stage.calibrator.active) for stage in stages)
        if not self._fitted:
            self._set_groups(stages)
            if not model.burning_in:
                self.calibrate(model)

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Measure if the loop ended the supervised stage just now."""
        if self._fitted:
            return
        model = teacher_student(runner, type(self).__name__)
        if not model.burning_in:
            self.calibrate(model)

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Measure at the interval, and at the end of a burn-in."""
        due = self.every_n_train_iters(runner, self.interval)
        if self._fitted and not due:
            return
        model = teacher_student(runner, type(self).__name__)
        if not model.burning_in:
            self.calibrate(model)

    @torch.no_grad()
    def calibrate(self, model: TeacherStudent) -> None:
        """Measure once and fit.

        Args:
            model (TeacherStudent): With calibration stages.
        """
        begin = time.perf_counter()
        stages = self._stages(model)
        preprocess = model.data_preprocessor.data_preprocessor
        pipeline = model.pseudo_label_pipeline
        if self._fitted:
            for stage in stages:
                stage.calibrator.decay(self.decay)
        show = is_main_process() and not self._fitted
        bar = ProgressBar(len(self._loader)) if show else None
        # Thresholds that follow the teacher must not follow it here.
        with evaluating(pipeline):
            for data in self._loader:
                batch = preprocess(data, False)
                predicted = model.predict_unfiltered(batch['inputs'],
                                                     batch['data_samples'])
                for stage in stages:
                    seen = pipeline(
                        predicted, batch['data_samples'], end=stage)
                    stage.observe(seen, batch['data_samples'])
                if bar is not None:
                    bar.update()
        if bar is not None:
            print()
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

    def _set_groups(self, stages: List[CalibrationStage]) -> None:
        """Let classes lean on those that are as frequent, in LVIS."""
        frequency = self._loader.dataset.metainfo.get('frequency')
        if frequency is None:
            return
        groups = ['rcf'.index(letter) for letter in frequency]
        for stage in stages:
            if not bool(stage.calibrator.groups.any()):
                stage.calibrator.set_groups(groups)

    def _check_classes(self, stages: List[CalibrationStage]) -> None:
        classes = self._loader.dataset.metainfo.get('classes') or ()
        for stage in stages:
            known = stage.calibrator.num_classes
            if classes and len(classes) != known:
                raise ValueError(
                    f'{type(stage).__name__}.calibrator.num_classes={known}, '
                    f'but the images of CalibrationHook have {len(classes)} '
                    'classes.')
        if len(self._loader.dataset) == 0:
            raise ValueError('CalibrationHook.dataloader has no images.')

    @staticmethod
    def _stages(model: TeacherStudent) -> List[CalibrationStage]:
        stages = [
            stage for stage in model.pseudo_label_pipeline.stages
            if isinstance(stage, CalibrationStage)
        ]
        if not stages:
            raise ValueError(
                'CalibrationHook needs mmsemi.CalibrateScores or mmsemi.'
                'CalibratePixels in model.pseudo_label_pipeline.')
        return stages
