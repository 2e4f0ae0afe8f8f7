# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Models with trained weights, ready to predict."""
import pickle
from pathlib import Path
from typing import Any, Union

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import checkpoint as runner_checkpoint
from torch import nn

from .configs import ConfigLike, load_config
from .training import set_predictor


def init_model(config: ConfigLike,
               checkpoint: Union[str, Path],
               which: str = 'teacher',
               device: str = 'cpu') -> nn.Module:
    """Build a model and load its weights.

    The model works with ``mmdet.apis.inference_detector``.

    Args:
        config (str, Path or Config): See :func:`load_config`.
        checkpoint (str or Path): Checkpoint of a teacher-student training,
            or of the plain segmenter.
        which (str): 'teacher' or 'student', which is to predict. Defaults to
            'teacher'.
        device (str): Defaults to 'cpu'.

    Returns:
        nn.Module: The model in evaluation mode, with ``cfg`` and
        ``dataset_meta``.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If the config's model has no teacher, or the teacher has
            not learnt anything yet.
        RuntimeError: If the weights are those of another model.
    """
    cfg = load_config(config)
    set_predictor(cfg, which)
    loaded = load_checkpoint_file(checkpoint)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(cfg.model)
    model.load_state_dict(loaded['state_dict'])
    check_trained(model, which)
    model.cfg = cfg
    model.dataset_meta = dataset_meta(cfg, loaded)
    return model.to(device).eval()


def check_trained(model: nn.Module, which: str) -> None:
    """Raise ValueError if the wanted model does not hold anything yet.

    Args:
        model (nn.Module): A teacher-student model with loaded weights.
        which (str): 'teacher' or 'student'.
    """
    if which == 'teacher' and model.predictor is not model.teacher:
        raise ValueError(
            'The teacher has not learnt anything yet: the checkpoint is of '
            f'optimizer step {int(model.step)}, and the teacher becomes a '
            'copy of the student at the end of the burn-in '
            f'(model.teacher.burn_in_steps='
            f'{model.teacher_settings.burn_in_steps}). Take the student.')


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
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f'{checkpoint} cannot be read as a checkpoint: it is damaged or '
            f'holds more than data. {str(error).splitlines()[0]}') from error
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


def dataset_meta(cfg: Config, checkpoint: dict) -> dict:
    """Return classes and palette.

    Args:
        cfg (Config): The config.
        checkpoint (dict): From :func:`load_checkpoint_file`.

    Returns:
        dict: What the checkpoint notes, else what the test data's config
        says, as plain lists, numbers and strings.
    """
    meta = (checkpoint.get('meta') or {}).get('dataset_meta')
    if not meta:
        source = cfg.test_dataloader.dataset.copy()
        source.lazy_init = True
        meta = DATASETS.build(source).metainfo
    return {str(key).lower(): plain(value) for key, value in meta.items()}


def plain(value: Any) -> Any:
    """Turn arrays and tensors into lists, config dicts into dicts."""
    if hasattr(value, 'tolist'):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(child) for child in value)
    return value

