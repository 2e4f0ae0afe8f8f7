# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The core of all teacher-student methods; it knows no task.

A. Tarvainen and H. Valpola, Mean teachers are better role models, NeurIPS
2017: the teacher's weights are an exponential moving average of the
student's. Burn-in as in Y.-C. Liu et al., Unbiased Teacher, ICLR 2021: the
student first learns from labels alone and is then copied. Guided burn-in as
in T. Berrada et al., Guided Distillation, WACV 2024: until it is copied, the
student learns from a trained teacher, too.
"""
import copy
from abc import abstractmethod
from typing import ContextManager, Dict, List, Optional, Tuple, Union

import torch
from mmengine.dist import all_reduce_params, get_world_size
from mmengine.logging import print_log
from torch import Tensor, nn

from mmsemi.models.evaluation_mode import evaluating
from mmsemi.registry import MODELS
from .multi_view_model import (MultiViewModel, matching_weights, scale_losses,
                               without_prefix)
from .segmentor_config import load_segmentor_config
from .teacher_checkpoint import load_teacher
from .teacher_settings import TeacherSettings
from .weight_schedule import WeightSchedule, check_weight

VIEWS = ('sup', 'unsup_teacher', 'unsup_student')


class TeacherStudent(MultiViewModel):
    """A student that learns from labels and from its teacher.

    Subclasses say what a pseudo-label is (:meth:`label_unlabeled`) and what
    the student's loss on it is (:meth:`loss_by_pseudo_labels`).

    The teacher is in evaluation mode whenever it labels, needs no gradient
    and is part of every checkpoint, as is the count of optimizer steps that
    schedules refer to. :class:`mmsemi.TeacherUpdateHook` calls
    :meth:`update_teacher` after every optimizer step; without a runner, call
    it yourself.

    Args:
        segmentor (dict or str): The model to train: a model config, the name
            of a config, or ``dict(cfg_path=NAME, ...)`` with changes; see
            :func:`load_segmentor_config`.
        teacher (dict, optional): Arguments of :class:`TeacherSettings`.
            Defaults to None: EMA with momentum 0.001 and warm-up.
        sup_weight (float): Weight of the supervised loss, not negative.
            Defaults to 1.
        unsup_weight (float or dict): Weight of the loss on pseudo-labels, or
            the arguments of :class:`WeightSchedule`. Defaults to 1.
        predict_on (str, optional): Which of 'teacher' and 'student'
            predicts. While a burn-in is to end in a copy of the student, the
            student always does. Defaults to None: 'teacher', or 'student'
            where there is no other (``teacher.mode='student'``).
        data_preprocessor (dict or nn.Module, optional): Preprocessor of one
            view. Defaults to None: that of the segmenter.
        init_cfg (dict, optional): Unused; the segmenter's own is applied.

    Raises:
        ValueError: If an argument is out of range or the segmenter cannot be
            used; the message names the field.
    """

    views: Tuple[str, ...] = VIEWS
    """Views that a batch must have after the burn-in."""

    def __init__(self,
                 segmentor: Union[dict, str],
                 teacher: Optional[dict] = None,
                 sup_weight: float = 1.,
                 unsup_weight: Union[float, dict] = 1.,
                 predict_on: Optional[str] = None,
                 data_preprocessor: Optional[Union[dict, nn.Module]] = None,
                 init_cfg: Optional[dict] = None) -> None:
        settings = TeacherSettings.from_config(teacher)
        schedule = WeightSchedule.from_config(unsup_weight)
        check_weight(sup_weight, 'sup_weight')
        config = load_segmentor_config(segmentor)
        self.check_preprocessor(config, data_preprocessor)
        self.check_segmentor(config)
        # Some models change the config they are built from.
        student = MODELS.build(copy.deepcopy(config))
        self.check_student(student)
        self.predictors = ('student', ) if settings.mode == 'student' else (
            'teacher', 'student')
        super().__init__(student, predict_on or self.predictors[0],
                         data_preprocessor, init_cfg)
        self.teacher_settings = settings
        self.sup_weight = float(sup_weight)
        self.unsup_weight = schedule
        self.student = student
        self.teacher = None
        if settings.mode != 'student':
            self.teacher = MODELS.build(copy.deepcopy(config))
            self.teacher.requires_grad_(False).eval()
        self.register_buffer('step', torch.zeros((), dtype=torch.long))
        self.copy_student_to_teacher()
        self._losses_since_update = 0
        self._teacher_has_own_weights = False
        self._guide_is_missing = settings.guided_steps > 0

    @classmethod
    def check_segmentor(cls, config: dict) -> None:
        """Refuse a model config that cannot serve as a teacher."""

    @classmethod
    def check_student(cls, student: nn.Module) -> None:
        """Refuse a built model that cannot serve as a teacher."""

    # What a method defines ------------------------------------------------

    @abstractmethod
    def label_unlabeled(self, inputs: Tensor, data_samples: list) -> list:
        """Let the teacher label a batch of its views.

        Args:
            inputs (Tensor): Images (N, C, H, W), preprocessed.
            data_samples (list): N data samples.

        Returns:
            list: N pseudo-labels that passed the pseudo-label pipeline.
        """

    @abstractmethod
    def loss_by_pseudo_labels(
            self, inputs: Dict[str, Tensor], data_samples: Dict[str, list],
            pseudo_labels: list) -> Tuple[Dict[str, Tensor], float]:
        """Compute the student's loss on pseudo-labels.

        Args:
            inputs (dict[str, Tensor]): All views of the batch, as for
                :meth:`loss`.
            data_samples (dict[str, list]): Their data samples.
            pseudo_labels (list): N pseudo-labels in the teacher's views.

        Returns:
            tuple[dict, float]: The losses by name, and a factor on them: the
            share of images in them, 0 if the batch gives nothing to learn
            from.
        """

    # Training -------------------------------------------------------------

    def loss(self, inputs: Dict[str, Tensor],
             data_samples: Dict[str, list]) -> Dict[str, Tensor]:
        """Compute supervised and unsupervised losses.

        Args:
            inputs (dict[str, Tensor]): Images (N, C, H, W) by view: 'sup',
                'unsup_teacher' and 'unsup_student'.
            data_samples (dict[str, list]): Data samples by view.

        Returns:
            dict[str, Tensor]: Losses ``sup_*`` and ``unsup_*``, and figures
            on the pseudo-labels, ``pseudo/*``, which are not summed.
        """
        # Read once and before the student runs: on a device the host waits
        # for all work queued so far.
        step = self.steps_since_burn_in
        self._check_views(inputs, VIEWS[:1] if step < 0 else self.views)
        if self._guide_is_missing:
            raise RuntimeError(
                'The teacher is to guide the student (teacher.guided_steps='
                f'{self.teacher_settings.guided_steps}), but its checkpoint '
                'was not loaded: call init_weights() before training.')
        self._expect_updates()
        if step < 0:
            return self.supervised_loss(inputs['sup'], data_samples['sup'])
        return self.semi_supervised_loss(inputs, data_samples, step)

    def supervised_loss(self, inputs: Tensor,
                        data_samples: list) -> Dict[str, Tensor]:
        """Compute the student's own, weighted loss on labelled images.

        Args:
            inputs (Tensor): Images (N, C, H, W).
            data_samples (list): N data samples with ground truth.

        Returns:
            dict[str, Tensor]: Losses ``sup_*``.
        """
        return scale_losses(
            self.student.loss(inputs, data_samples), self.sup_weight, 'sup_')

    def semi_supervised_loss(self, inputs: Dict[str, Tensor],
                             data_samples: Dict[str, list],
                             step: int) -> Dict[str, Tensor]:
        """Compute all losses after the burn-in.

        A method that shares passes between its losses overrides this.

        Args:
            inputs (dict[str, Tensor]): See :meth:`loss`.
            data_samples (dict[str, list]): See :meth:`loss`.
            step (int): Optimizer steps since the end of the burn-in.

        Returns:
            dict[str, Tensor]: See :meth:`loss`.
        """
        losses = self.supervised_loss(inputs['sup'], data_samples['sup'])
        pseudo_labels = self.label_unlabeled(inputs['unsup_teacher'],
                                             data_samples['unsup_teacher'])
        unsup_losses, factor = self.loss_by_pseudo_labels(
            inputs, data_samples, pseudo_labels)
        losses.update(
            scale_losses(unsup_losses,
                         self.unsup_weight(step) * factor, 'unsup_'))
        losses.update(
            self.pseudo_label_figures(pseudo_labels,
                                      data_samples['unsup_teacher']))
        return losses

    def pseudo_label_figures(self, pseudo_labels: list,
                             teacher_samples: list) -> Dict[str, Tensor]:
        """Describe a batch of pseudo-labels for the log.

        Args:
            pseudo_labels (list): What passed the pipeline.
            teacher_samples (list): Data samples of the teacher's views.

        Returns:
            dict[str, Tensor]: Scalars named ``pseudo/*``. By default none.
        """
        return {}

    def _expect_updates(self) -> None:
        self._losses_since_update += 1
        if self._losses_since_update == 1000:
            print_log(
                'The teacher has not been updated for 1,000 iterations: add '
                "dict(type='mmsemi.TeacherUpdateHook') to custom_hooks, or "
                'call update_teacher() after every optimizer step.',
                logger='current',
                level=30)

    @property
    def steps_since_burn_in(self) -> int:
        """int: Optimizer steps with pseudo-labels; negative before."""
        return int(self.step) - self.teacher_settings.burn_in_steps

    @property
    def burning_in(self) -> bool:
        """bool: Whether the student still learns from labels alone."""
        return self.steps_since_burn_in < 0

    @property
    def guided(self) -> bool:
        """bool: Whether the teacher still is what it was trained to be."""
        return int(self.step) < self.teacher_settings.guided_steps

    def train(self, mode: bool = True) -> 'TeacherStudent':
        """Set the mode of the student; the teacher always evaluates."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @property
    def labeler(self) -> nn.Module:
        """nn.Module: Who labels: the teacher, or the student itself."""
        return self.student if self.teacher is None else self.teacher

    def labeling(self) -> ContextManager[nn.Module]:
        """Let who labels evaluate, and give it back as it was.

        Returns:
            ContextManager[nn.Module]: Of :attr:`labeler`, in evaluation
            mode.
        """
        return evaluating(self.labeler)

    # The teacher ----------------------------------------------------------

    @torch.no_grad()
    def copy_student_to_teacher(self) -> None:
        """Make the teacher an exact copy of the student."""
        if self.teacher is None:
            return
        self.teacher.load_state_dict(self.student.state_dict())

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher; to be called once per optimizer step.

        Parameters and floating-point buffers are averaged, integer buffers
        copied. The student's own floating-point buffers become their mean
        over all processes first: each process sees other images, and a
        checkpoint holds those of one.
        """
        settings = self.teacher_settings
        self.step += 1
        self._losses_since_update = 0
        if get_world_size() > 1:
            all_reduce_params([
                buffer for buffer in self.student.buffers()
                if buffer.is_floating_point()
            ],
                              op='mean')
        if settings.mode != 'ema':
            return
        update = int(self.step) if settings.average_burn_in else \
            self.steps_since_burn_in
        update -= settings.guided_steps
        if update < 0:
            return
        if update == 0:
            self._average_teacher(1.)
            return
        self._average_teacher(settings.momentum_at(update))

    def _average_teacher(self, momentum: float) -> None:
        pairs = list(
            zip(self.teacher.parameters(), self.student.parameters()))
        for teacher, student in zip(self.teacher.buffers(),
                                    self.student.buffers()):
            if student.is_floating_point():
                pairs.append((teacher, student))
            else:
                teacher.copy_(student)
        if pairs:
            torch._foreach_lerp_([teacher for teacher, _ in pairs],
                                 [student for _, student in pairs], momentum)

    @torch.no_grad()
    def teacher_student_distance(self) -> float:
        """Return the relative distance of the weights.

        Returns:
            float: ||teacher - student|| / ||student|| over all parameters;
            0 if the student labels for itself.
        """
        if self.teacher is None:
            return 0.
        teacher = list(self.teacher.parameters())
        student = list(self.student.parameters())
        gaps = torch._foreach_sub(teacher, student)
        gap = torch.stack(torch._foreach_norm(gaps)).norm()
        size = torch.stack(torch._foreach_norm(student)).norm()
        return float(gap / size.clamp(min=1e-12))

    # Prediction -----------------------------------------------------------

    @property
    def predictor(self) -> nn.Module:
        """nn.Module: The model that predicts now."""
        settings = self.teacher_settings
        if self.predict_on == 'student':
            return self.student
        if settings.copies_after_burn_in and self.burning_in:
            return self.student
        return self.labeler

    # Weights --------------------------------------------------------------

    def init_weights(self) -> None:
        """Initialise the student, copy it and load the teacher's own."""
        self.student.init_weights()
        self.copy_student_to_teacher()
        checkpoint = self.teacher_settings.checkpoint
        if checkpoint is None:
            return
        load_teacher(self.teacher, checkpoint, complete=self.guided)
        self._teacher_has_own_weights = True
        self._guide_is_missing = False

    def _load_from_state_dict(self, state_dict: dict, prefix: str,
                              local_metadata: dict, strict: bool,
                              missing_keys: List[str],
                              unexpected_keys: List[str],
                              error_msgs: List[str]) -> None:
        """Let a checkpoint of a plain segmenter fill both models."""
        own = without_prefix(state_dict, prefix)
        parts = {
            part: without_prefix(own, f'{part}.')
            for part in sorted(self.predictors)
        }
        is_plain = not any(parts.values())
        if is_plain:
            parts = {part: own for part in parts}
        matched = {
            part: len(matching_weights(weights, self.student))
            for part, weights in parts.items()
        }
        if not any(matched.values()):
            raise RuntimeError(
                'The checkpoint matches nothing: none of its '
                f'{len(own)} keys (such as {list(own)[:3]}) is a weight of '
                'the segmenter, by name and shape (such as '
                f'{list(self.student.state_dict())[:3]}). Is it of another '
                'model, or of a backbone alone? The latter belongs into '
                'init_cfg of the backbone.')
        if is_plain:
            for key in own:
                del state_dict[prefix + key]
            filled = ' and '.join(parts)
            if self._teacher_has_own_weights:
                filled = 'the student; the teacher keeps teacher.checkpoint'
                parts['teacher'] = self.teacher.state_dict()
            for part, weights in parts.items():
                for key, value in weights.items():
                    state_dict[f'{prefix}{part}.{key}'] = value
            # Steps, calibration and the like stay as they are.
            for key, value in self.state_dict().items():
                if key.partition('.')[0] not in parts:
                    state_dict[prefix + key] = value
            known = sum(v.is_floating_point()
                        for v in self.student.state_dict().values())
            print_log(
                f'Loaded {matched["student"]} of {known} weights of a plain '
                f'segmenter into {filled}.',
                logger='current')
        elif self.teacher is not None and not parts['teacher']:
            # Of a student that labelled for itself.
            weights, start = parts['student'], 'starts as the student'
            if self._teacher_has_own_weights:
                weights = self.teacher.state_dict()
                start = 'keeps teacher.checkpoint'
            for key, value in weights.items():
                state_dict[f'{prefix}teacher.{key}'] = value
            print_log(
                f'The checkpoint holds no teacher; it {start}.',
                logger='current')
        self._guide_is_missing = False
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
