# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from typing import List, Optional

from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from mmsemi.methods import TeacherStudent
from mmsemi.registry import HOOKS
from .training_check_hook import check_training, optim_wrappers


@HOOKS.register_module()
class TeacherUpdateHook(Hook):
    """Update the teacher once per optimizer step.

    The optimizers themselves report their steps. An iteration that only
    accumulates gradients, or whose step the loss scaler skipped because a
    gradient overflowed, leaves the teacher and its step count alone. A loop
    may replace the optimizer between two iterations.

    Before training it also runs :func:`check_training`.

    Raises:
        TypeError: If the model is no :class:`TeacherStudent`, or an
            optimizer cannot report its steps.
        ValueError: If another hook would average the model as well.
    """

    # Before the hooks that look at the teacher, log it or save it.
    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        self._handles = []
        self._heard: Optional[OptimWrapper] = None
        # One entry per step of this iteration: None, or the overflow flag
        # of a fused optimizer, which skips the step inside its kernel.
        self._steps: List[Optional[Tensor]] = []

    def before_train(self, runner: Runner) -> None:
        """Check the training and listen to its optimizers."""
        teacher_student(runner, type(self).__name__)
        self._check_other_hooks(runner)
        check_training(runner)
        self._listen(runner)

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Listen to an optimizer that is new."""
        if runner.optim_wrapper is not self._heard:
            self._listen(runner)

    def _listen(self, runner: Runner) -> None:
        self._stop_listening()
        self._heard = runner.optim_wrapper
        for wrapper in optim_wrappers(runner.optim_wrapper):
            optimizer = wrapper.optimizer
            if not isinstance(optimizer, Optimizer):
                raise TypeError(
                    f'TeacherUpdateHook cannot see the steps of '
                    f'{type(optimizer).__name__} (optim_wrapper); allowed '
                    'are subclasses of torch.optim.Optimizer.')
            self._handles.append(
                optimizer.register_step_post_hook(self._note_step))

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Update the teacher if the student changed."""
        steps, self._steps = self._steps, []
        if any(overflow is None or not bool(overflow) for overflow in steps):
            teacher_student(runner, type(self).__name__).update_teacher()

    def after_train(self, runner: Runner) -> None:
        """Stop listening."""
        self._stop_listening()

    def _note_step(self, optimizer: Optimizer, args: tuple,
                   kwargs: dict) -> None:
        # The loss scaler lends the flag to fused optimizers for one step.
        self._steps.append(getattr(optimizer, 'found_inf', None))

    def _stop_listening(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._heard = None
        self._steps = []

    def _check_other_hooks(self, runner: Runner) -> None:
        for hook in runner.hooks:
            names = {cls.__name__ for cls in type(hook).__mro__}
            if isinstance(hook, EMAHook) or 'MeanTeacherHook' in names or (
                    isinstance(hook, TeacherUpdateHook) and hook is not self):
                raise ValueError(
                    f'custom_hooks has {type(hook).__name__} beside '
                    'TeacherUpdateHook: the weights would be averaged twice. '
                    'Remove it; momentum and warm-up of the teacher are '
                    'model.teacher.momentum and model.teacher.warm_up_gamma.')


def teacher_student(runner: Runner, user: str) -> TeacherStudent:
    """Return the runner's model without distributed wrappers.

    Args:
        runner (Runner): The runner.
        user (str): Who needs the model, for the message.

    Returns:
        TeacherStudent: The model.

    Raises:
        TypeError: If it is of another kind.
    """
    model = runner.model
    while is_model_wrapper(model):
        model = model.module
    if not isinstance(model, TeacherStudent):
        raise TypeError(
            f'{user} needs a model with teacher and student, such as '
            'mmsemi.SemiInstanceSegmentor, but model.type is '
            f'{type(model).__name__}.')
    return model
