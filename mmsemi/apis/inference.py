# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Models with trained weights, ready to predict."""
from pathlib import Path
from typing import Any, Union

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from .checkpoints import check_teacher, load_checkpoint_file
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
    if which == 'teacher':
        check_teacher(model.teacher_settings, int(model.step))
    model.cfg = cfg
    model.dataset_meta = dataset_meta(cfg, loaded)
    return model.to(device).eval()


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
