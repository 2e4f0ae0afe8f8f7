# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmsemi.registry import HOOKS
from .teacher_update_hook import teacher_student

# Instances per image, or the share of pixels.
COUNT_KEYS = ('pseudo/per_image', 'pseudo/kept_share')


@HOOKS.register_module()
class PseudoLabelMonitorHook(Hook):
    """Watch the teacher: warn if it stays empty, log how far it is.

    The model's own figures, ``pseudo/*``, reach the log without this hook.
    It adds ``teacher_distance``, the relative distance of the teacher's
    weights from the student's.

    Args:
        interval (int): Iterations between two measurements of the distance.
            Defaults to 50.
        empty_patience (int): Warn after so many iterations in a row without
            a single pseudo-label, and again after as many more. Iterations
            of the burn-in do not count. Defaults to 200.
    """

    # Between the teacher's update and the hook that prints the log.
    priority = 'NORMAL'

    def __init__(self, interval: int = 50, empty_patience: int = 200) -> None:
        for name, value in (('interval', interval), ('empty_patience',
                                                     empty_patience)):
            if isinstance(value,
                          bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'PseudoLabelMonitorHook.{name}={value!r}; '
                                 'allowed are whole numbers from 1.')
        self.interval = interval
        self.empty_patience = empty_patience
        self._empty_iters = 0

    def before_train(self, runner: Runner) -> None:
        """Check the model."""
        teacher_student(runner, type(self).__name__)
        self._empty_iters = 0

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Count empty iterations and measure the distance."""
        found = [key for key in COUNT_KEYS if key in (outputs or {})]
        if found:
            self._watch(runner, float(outputs[found[0]]))
        if self.every_n_train_iters(runner,
                                    self.interval) and is_main_process():
            model = teacher_student(runner, type(self).__name__)
            runner.message_hub.update_scalar('train/teacher_distance',
                                             model.teacher_student_distance())

    def _watch(self, runner: Runner, count: float) -> None:
        if count > 0:
            self._empty_iters = 0
            return
        self._empty_iters += 1
        if self._empty_iters % self.empty_patience:
            return
        settings = teacher_student(runner, type(self).__name__)\
            .teacher_settings
        print_log(
            'The teacher has given no pseudo-label for '
            f'{self._empty_iters} iterations (now {runner.iter + 1}), so the '
            'student learns nothing from unlabelled images. Likely causes: '
            'the filters in model.pseudo_label_pipeline are too strict (look '
            'at score_thr, conf_thr and min_area); the teacher was asked too '
            f'early (model.teacher.burn_in_steps={settings.burn_in_steps}) or '
            f'follows too slowly (model.teacher.mode={settings.mode!r}, '
            f'momentum={settings.momentum}); its weights do not fit (no '
            'load_from, or a checkpoint with other batch statistics); the '
            "weak view's pipeline differs from the one for validation. Add "
            'PseudoLabelVisualizationHook to look at the views.',
            logger='current',
            level=30)
