# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The two stages of SemInst.

R. Chi, Z. Huang and Y. Han, Integrated Image-Text Based on Semi-supervised
Learning for Small Sample Instance Segmentation (arXiv 2410.16063). Its other
half, text in the classifier, is :class:`mmsemi.SemanticBranch`, a part of the
segmenter; each works without the other. With L_sup the segmenter's own loss:

    stage 1    theta* = argmin of L_sup(labelled images)
    stage 2    theta_T = theta_S = theta* at its start; theta_S minimises
               L = L_sup(labelled images) + lambda * L_sup(others),
               where the teacher's instances are the ground truth of the
               others. theta_T stays, or by choice follows:
               theta_T = (1 - alpha) * theta_T + alpha * theta_S.

An instance of the teacher is ground truth if its most likely class of C + 1
is not "no object" and has a probability above 0.7, and its mask covers more
than 5 cells at stride 8.

Known of the paper are the two stages, that labels are made during the second
one and that a threshold filters them. Choices of this implementation, each an
argument, are: the frozen teacher, the student's start, the threshold and its
value, the filter by size, lambda = 1 and alpha = 4e-4. Thresholds and alpha
are those of T. Berrada et al., Guided Distillation, WACV 2024.
"""
from fnmatch import fnmatchcase
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmsemi.registry import MODELS
from .semi_instance_segmentor import SemiInstanceSegmentor

CONFIDENT_INSTANCES = (dict(type='mmsemi.FilterByScore', score_thr=0.7),
                       dict(
                           type='mmsemi.FilterByMaskCells',
                           min_cells=5.,
                           stride=8))
TEACHER = dict(mode='frozen', momentum=4e-4, warm_up_gamma=0.)
# What gives the teacher other weights than those of stage 1.
OTHER_STARTS = ('burn_in_steps', 'average_burn_in', 'checkpoint',
                'guided_steps')


def with_stage_one(teacher: Optional[Any]) -> dict:
    """Fill in a teacher that starts as what stage 1 ends with.

    Args:
        teacher (Mapping, optional): Arguments of :class:`TeacherSettings`.

    Returns:
        dict: Frozen, with momentum 4e-4 and no warm-up, unless given.

    Raises:
        ValueError: If it is no mapping, or starts otherwise.
    """
    if not isinstance(teacher, (Mapping, type(None))):
        raise ValueError(f'teacher={teacher!r}; it must be a dict, such as '
                         "dict(mode='ema').")
    teacher = {**TEACHER, **(teacher or {})}
    for field in OTHER_STARTS:
        if teacher.get(field):
            raise ValueError(
                f'teacher.{field}={teacher[field]!r} has no effect: the '
                'teacher of mmsemi.SemInst starts as what stage 1 ends with. '
                'For another start use mmsemi.SemiInstanceSegmentor.')
    return teacher


@MODELS.register_module()
class SemInst(SemiInstanceSegmentor):
    """A model that first learns from labels and then teaches itself.

    :class:`mmsemi.TwoStageTrainLoop` leads it through both stages. In stage
    1 batches hold labelled images alone and the student predicts, whatever
    ``predict_on`` says.

    With query heads ``mmsemi.QueryFusionHead`` gives one label per query,
    with the probability of its class. mmdet's fusion head multiplies it by
    the mean probability of the mask, and below a threshold of 0.5 the same
    mask may come with several classes.

    A batch without any pseudo-label adds nothing to the loss. An image
    without any in a batch with some is background, as in mmdet.

    Args:
        segmentor (dict or str): The mmdet model.
        teacher (dict, optional): Arguments of :class:`TeacherSettings`,
            without those for another start. Defaults to None:
            ``mode='frozen'``; with ``mode='ema'`` ``momentum`` is 4e-4 and
            ``warm_up_gamma`` 0.
        pseudo_label_pipeline (Sequence[dict]): Defaults to
            ``FilterByScore(score_thr=0.7)`` and
            ``FilterByMaskCells(min_cells=5, stride=8)``, which needs masks.
        unsup_weight (float or dict): lambda; steps of a schedule count from
            the start of stage 2. Defaults to 1.
        unsup_losses (Sequence[str], optional): Patterns (``*`` stands for
            anything) of the names of the segmenter's losses that learn from
            pseudo-labels, such as ``('loss_cls', '*.loss_cls')``. Defaults
            to None: all.
        predict_on (str, optional): Which of 'teacher' and 'student'
            predicts. Defaults to None: the teacher if it follows the
            student, else the student.
        **kwargs: Arguments of :class:`SemiInstanceSegmentor`.

    Raises:
        ValueError: If an argument is out of range or has no effect.
    """

    def __init__(self,
                 segmentor: Union[dict, str],
                 teacher: Optional[Mapping] = None,
                 pseudo_label_pipeline: Sequence[dict] = CONFIDENT_INSTANCES,
                 unsup_weight: Union[float, dict] = 1.,
                 unsup_losses: Optional[Sequence[str]] = None,
                 predict_on: Optional[str] = None,
                 **kwargs) -> None:
        teacher = with_stage_one(teacher)
        if predict_on is None:
            predict_on = 'teacher' if teacher['mode'] == 'ema' else 'student'
        if unsup_losses is not None and (isinstance(unsup_losses, str)
                                         or not unsup_losses):
            raise ValueError(f'unsup_losses={unsup_losses!r}; it must be a '
                             'list of names of losses, or None for all.')
        super().__init__(
            segmentor,
            teacher=teacher,
            pseudo_label_pipeline=pseudo_label_pipeline,
            unsup_weight=unsup_weight,
            predict_on=predict_on,
            **kwargs)
        self.unsup_losses = unsup_losses
        self.register_buffer('stage2_begin',
                             torch.full((), -1, dtype=torch.long))

    # The stages -----------------------------------------------------------

    def begin_stage_one(self) -> None:
        """Learn from labels alone from now on."""
        self.stage2_begin.fill_(-1)

    @torch.no_grad()
    def begin_stage_two(self) -> None:
        """Make the student its own teacher and learn from both."""
        self.copy_student_to_teacher()
        self.stage2_begin.copy_(self.step)

    @property
    def steps_since_burn_in(self) -> int:
        """int: Optimizer steps of stage 2; -1 in stage 1."""
        begin = int(self.stage2_begin)
        return -1 if begin < 0 else int(self.step) - begin

    @property
    def predictor(self) -> nn.Module:
        """nn.Module: The model that predicts now."""
        return self.student if self.burning_in else super().predictor

    def loss(self, inputs: Dict[str, Tensor],
             data_samples: Dict[str, list]) -> Dict[str, Tensor]:
        """Compute the losses of the stage; see :class:`TeacherStudent`.

        Raises:
            ValueError: If unlabelled images come in stage 1.
        """
        if self.burning_in and isinstance(inputs, dict) and len(inputs) > 1:
            raise ValueError(
                'mmsemi.SemInst is in stage 1, which has labelled images '
                f'alone, and was given the views {sorted(inputs)}. Set '
                "train_cfg=dict(type='mmsemi.TwoStageTrainLoop', "
                'stage1_iters=..., stage2_iters=...).')
        return super().loss(inputs, data_samples)

    # The loss on pseudo-labels --------------------------------------------

    def loss_by_pseudo_labels(
            self, inputs: Dict[str, Tensor],
            data_samples: Dict[str, List[DetDataSample]],
            pseudo_labels: List[InstanceData]
    ) -> Tuple[Dict[str, Tensor], float]:
        """Compute the student's loss; see :class:`SemiInstanceSegmentor`.

        Raises:
            ValueError: If a pattern of ``unsup_losses`` fits no loss.
        """
        losses, factor = super().loss_by_pseudo_labels(inputs, data_samples,
                                                       pseudo_labels)
        if self.unsup_losses is None:
            return losses, factor
        for pattern in self.unsup_losses:
            if not any(fnmatchcase(name, pattern) for name in losses):
                raise ValueError(
                    f'unsup_losses has {pattern!r}, which is none of the '
                    f"segmenter's losses: {sorted(losses)}.")
        return {
            name: value
            for name, value in losses.items() if 'loss' not in name or any(
                fnmatchcase(name, pattern) for pattern in self.unsup_losses)
        }, factor

    def _load_from_state_dict(self, state_dict: dict, prefix: str,
                              local_metadata: dict, strict: bool,
                              missing_keys: List[str],
                              unexpected_keys: List[str],
                              error_msgs: List[str]) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        # Checkpoints of plain segmenters and of other methods lack it.
        own = f'{prefix}stage2_begin'
        if own in missing_keys:
            missing_keys.remove(own)
