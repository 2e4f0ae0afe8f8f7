# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Read and find checkpoints."""
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

import torch
from mmengine.runner import checkpoint as runner_checkpoint

if TYPE_CHECKING:
    from mmsemi.methods import TeacherSettings


def load_checkpoint_file(checkpoint: Union[str, Path]) -> dict:
    """Read a checkpoint without running code from it.

    Args:
        checkpoint (str or Path): A local file.

    Returns:
        dict: With ``state_dict`` and, where the file has it, ``meta``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint {checkpoint}.')
    # Without these, torch refuses the log history that a training saves.
    history_types = getattr(runner_checkpoint, 'get_torch_safe_globals',
                            list)()
    try:
        with torch.serialization.safe_globals(history_types):
            loaded = torch.load(path, map_location='cpu', weights_only=True)
    # Bytes that are no checkpoint can make it fail in any way.
    except Exception as error:
        raise ValueError(
            f'{checkpoint} cannot be read as a checkpoint: it is damaged or '
            'holds more than data. '
            f'{type(error).__name__}: {str(error)[:200]}') from error
    if not isinstance(loaded, dict):
        raise ValueError(f'{checkpoint} is no checkpoint: it holds a '
                         f'{type(loaded).__name__}.')
    state_dict = loaded.get('state_dict', loaded)
    if not state_dict or not all(
            isinstance(value, torch.Tensor)
            for value in state_dict.values()):
        raise ValueError(f'{checkpoint} holds no weights; its keys are '
                         f'{sorted(map(str, loaded))[:5]}.')
    return dict(loaded if 'state_dict' in loaded else {},
                state_dict=state_dict)


def latest_checkpoint(work_dir: Union[str, Path]) -> Optional[str]:
    """Find the newest complete checkpoint of a training.

    A training that was killed while it wrote leaves half a checkpoint, and
    one whose folder was moved notes a path that is no more.

    Args:
        work_dir (str or Path): Folder of the training.

    Returns:
        str or None: The path; None if there is no complete checkpoint.
    """
    work_dir = Path(work_dir)
    candidates = []
    if (work_dir / 'last_checkpoint').is_file():
        noted = runner_checkpoint.find_latest_checkpoint(str(work_dir))
        if noted:
            candidates = [Path(noted), work_dir / Path(noted).name]
    numbered = [
        path for path in work_dir.glob('*_*.pth')
        if path.stem.split('_')[0] in ('iter', 'epoch')
        and path.stem.split('_')[1].isdigit()
    ]
    candidates += sorted(
        numbered, key=lambda path: int(path.stem.split('_')[1]), reverse=True)
    for path in candidates:
        # The table of contents is what a checkpoint ends with.
        if path.is_file() and zipfile.is_zipfile(path):
            return str(path)
    return None


def check_teacher(settings: 'TeacherSettings',
                  step: int,
                  stage2_begin: int = 0) -> None:
    """Raise ValueError if the teacher does not hold anything yet.

    Args:
        settings (TeacherSettings): How the teacher learns.
        step (int): Optimizer steps so far.
        stage2_begin (int): Step at which stage 2 of ``mmsemi.SemInst``
            began; negative before. Defaults to 0.
    """
    if stage2_begin < 0:
        raise ValueError(
            'The teacher has not learnt anything yet: the checkpoint is of '
            f'stage 1, at optimizer step {step}, and the teacher becomes a '
            'copy of the student at its end. Take the student.')
    if (settings.mode == 'ema' and not settings.average_burn_in
            and step < settings.burn_in_steps):
        raise ValueError(
            'The teacher has not learnt anything yet: the checkpoint is of '
            f'optimizer step {step}, and the teacher becomes a copy of the '
            'student at the end of the burn-in (model.teacher.burn_in_steps='
            f'{settings.burn_in_steps}). Take the student.')
