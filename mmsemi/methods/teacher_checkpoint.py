# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Weights for the teacher alone."""
from typing import Mapping

from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from torch import Tensor, nn

from .multi_view_model import matching_weights, without_prefix


def load_teacher(teacher: nn.Module,
                 checkpoint: str,
                 complete: bool = False) -> None:
    """Load ``teacher.checkpoint`` into a teacher.

    Args:
        teacher (nn.Module): A plain segmenter.
        checkpoint (str): File or URL, of a plain segmenter or of a
            semi-supervised model, whose teacher is taken.
        complete (bool): Whether every parameter of the teacher must be in
            it. Buffers need not be: plain models may lack some. Defaults to
            False.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If it holds no weight of the teacher, or not all.
    """
    try:
        loaded = CheckpointLoader.load_checkpoint(
            checkpoint, map_location='cpu')
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'teacher.checkpoint={checkpoint!r} does not exist.') from error
    fill_teacher(teacher, loaded.get('state_dict', loaded),
                 f'teacher.checkpoint={checkpoint!r}', complete)


def fill_teacher(teacher: nn.Module,
                 state: Mapping[str, Tensor],
                 source: str,
                 complete: bool = False) -> None:
    """Load weights into a teacher.

    Args:
        teacher (nn.Module): A plain segmenter.
        state (Mapping[str, Tensor]): Weights of a plain segmenter or of a
            semi-supervised model, whose teacher is taken.
        source (str): Where they are from, for messages.
        complete (bool): See :func:`load_teacher`. Defaults to False.

    Raises:
        RuntimeError: See :func:`load_teacher`.
    """
    own = without_prefix(state, 'teacher.') or state
    found = matching_weights(own, teacher)
    if not found:
        raise RuntimeError(
            f'{source} holds no weight of this model; its first keys are '
            f'{list(state)[:3]}.')
    names = dict(teacher.named_parameters())
    missing = sorted(names.keys() - set(found))
    if complete and missing:
        raise RuntimeError(
            f'{source} lacks {len(missing)} of {len(names)} parameters of '
            f'this model, by name and shape, such as {missing[:3]}. A teacher '
            'that guides (teacher.guided_steps), or is measured, must be '
            'trained as a whole.')
    load_state_dict(teacher, own, logger='current')
