# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Guided distillation for instance segmentation.

T. Berrada et al., Guided Distillation for Semi-Supervised Instance
Segmentation, WACV 2024 (arXiv 2308.02668). With theta_T and theta_S the
weights of teacher and student before iteration i, B the length of the
burn-in and theta* a segmenter trained on the labelled images alone:

    theta_T = theta*                                        for i < B,
    theta_T = theta_S                                       at i = B,
    theta_T = (1 - alpha) * theta_T + alpha * theta_S       for i > B.

theta_S starts as any segmenter does, from its backbone's weights, and learns
in every iteration from

    L = L_sup(labelled images) + lambda * L_sup(unlabelled images),

where the second term takes the teacher's instances for ground truth. That
this term is there from the first iteration on is what guides: earlier work
burns in on labels alone.
"""
from typing import Any, Mapping, Optional, Sequence, Union

from mmsemi.registry import MODELS
from .semi_instance_segmentor import SemiInstanceSegmentor

CONFIDENT_MASKS = (dict(type='mmsemi.FilterByScore', score_thr=0.7),
                   dict(type='mmsemi.FilterByMaskCells',
                        min_cells=5., stride=4))
TEACHER = dict(momentum=4e-4, warm_up_gamma=0., guided_steps=50000)


def with_guided_burn_in(teacher: Optional[Any]) -> dict:
    """Fill in what the released code sets.

    Args:
        teacher (Mapping, optional): Arguments of :class:`TeacherSettings`.

    Returns:
        dict: With momentum 4e-4, no warm-up and 50,000 guided steps, unless
        given.

    Raises:
        ValueError: If it is no mapping, or has no guided steps.
    """
    if not isinstance(teacher, (Mapping, type(None))):
        raise ValueError(f'teacher={teacher!r}; it must be a dict, such as '
                         "dict(checkpoint='teacher.pth').")
    teacher = {**TEACHER, **(teacher or {})}
    if teacher['guided_steps'] == 0:
        raise ValueError(
            'teacher.guided_steps=0; mmsemi.GuidedDistillation needs at '
            'least 1. Without a guided burn-in use mmsemi.'
            'SemiInstanceSegmentor.')
    return teacher


@MODELS.register_module()
class GuidedDistillation(SemiInstanceSegmentor):
    """A trained teacher guides the burn-in of a student from scratch.

    Defaults are those of the released code; they were not compared with the
    text of the paper. Where this differs from the code:

    - Iterations are optimizer steps, and the teacher moves after a step
      instead of before the next one, which is the same.
    - Integer buffers are copied; the code leaves them as they were.
    - Targets are masks of the view's size, not of the decoder's stride 4,
      and so is what the filter by size counts.

    A batch without any pseudo-label adds nothing to the loss, as in mmdet.

    One label per query, the class of highest probability with "no object"
    among them, comes from heads that give soft labels, such as
    ``mmsemi.QueryFusionHead``. With mmdet's own fusion head a query may
    yield several labels, whose scores are multiplied by those of the masks.
    Masks are cut at 0.5, as mmdet's heads do by default. The pseudo-labels
    are hard; ``soft_labels=True`` hands on all probabilities, which is not
    part of the method.

    The views should share their geometry; ``mmsemi.StrongColor`` with
    ranges 0.4, 0.4, 0.4 and 0.1 is the strong view of the code.

    Args:
        segmentor (dict or str): The mmdet model.
        teacher (dict): Arguments of :class:`TeacherSettings`. The
            ``checkpoint`` of a model trained on the labelled images must be
            given; ``momentum`` is 4e-4, ``warm_up_gamma`` 0 and
            ``guided_steps`` 50,000 by default.
        pseudo_label_pipeline (Sequence[dict]): Defaults to
            ``FilterByScore(score_thr=0.7)`` and
            ``FilterByMaskCells(min_cells=5, stride=4)``.
        unsup_weight (float or dict): lambda. Defaults to 2.
        predict_on (str): Which of 'teacher' and 'student' predicts. Defaults
            to 'student', which the code evaluates.
        **kwargs: Arguments of :class:`SemiInstanceSegmentor`.

    Raises:
        ValueError: If there is no ``teacher.checkpoint`` or an argument is
            out of range.
    """

    def __init__(self,
                 segmentor: Union[dict, str],
                 teacher: Optional[Mapping] = None,
                 pseudo_label_pipeline: Sequence[dict] = CONFIDENT_MASKS,
                 unsup_weight: Union[float, dict] = 2.,
                 predict_on: str = 'student',
                 **kwargs) -> None:
        super().__init__(
            segmentor,
            teacher=with_guided_burn_in(teacher),
            pseudo_label_pipeline=pseudo_label_pipeline,
            unsup_weight=unsup_weight,
            predict_on=predict_on,
            **kwargs)
