# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Models with trained weights, ready to predict."""
import copy
from pathlib import Path
from typing import Any, Optional, Union

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from torch import nn

from .checkpoints import load_checkpoint_file
from .configs import ConfigLike, load_config
from .predictors import build_wrapper, check_predictor, check_weights
from .type_check import resolve_type

#: Transforms that new images have nothing for.
ANNOTATION_LOADERS = ('LoadAnnotations', 'LoadMaskProposals',
                      'LoadReferringMask')


def init_model(config: ConfigLike,
               checkpoint: Union[str, Path],
               which: Optional[str] = None,
               device: str = 'cpu') -> nn.Module:
    """Build a model and load its weights.

    An instance model works with ``mmdet.apis.inference_detector``, a
    semantic one with ``mmseg.apis.inference_model``, a referring one with
    :func:`mmsemi.apis.predict_referred`.

    Args:
        config (str, Path or Config): See :func:`load_config`.
        checkpoint (str or Path): Checkpoint of a training, or of the plain
            segmenter.
        which (str, optional): What is to predict: 'teacher', 'student',
            'network_0', ..., 'mean', as the model has it. Defaults to None:
            ``model.predict_on`` of the config, for most methods 'teacher'.
        device (str): Defaults to 'cpu'.

    Returns:
        nn.Module: The model in evaluation mode, with ``cfg`` and
        ``dataset_meta``.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If the model has no such part, the checkpoint does not
            hold it, or the teacher has not learnt anything yet.
        RuntimeError: If the weights are those of another model.
    """
    cfg = load_config(config)
    if cfg.get('model') is None:
        raise ValueError('The config has no model.')
    loaded = load_checkpoint_file(checkpoint)
    wrapper, kind = build_wrapper(cfg), cfg.model.get('type')
    if which is not None:
        check_predictor(wrapper, which, kind)
        wrapper.predict_on = cfg.model.predict_on = which
    check_weights(
        wrapper, loaded['state_dict'], which, kind, need_teacher=True)
    model = MODELS.build(cfg.model) if wrapper is None else wrapper
    model.load_state_dict(loaded['state_dict'])
    model.cfg = cfg
    model.dataset_meta = dataset_meta(cfg, loaded)
    pipeline = image_pipeline(cfg)
    if cfg.get('default_scope') == 'mmseg' and pipeline:
        # mmseg's inference takes the top level's, which is a variable of the
        # config that may have been overridden where it was used.
        cfg.test_pipeline = pipeline
    return model.to(device).eval()


def image_pipeline(cfg: Config) -> list:
    """Return the transforms of test images, without those of annotations.

    Args:
        cfg (Config): The config.

    Returns:
        list[dict]: A copy; empty if there are no test data.
    """
    dataset = dict(cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return [
        copy.deepcopy(transform) for transform in dataset.get('pipeline', ())
        if str(transform.get('type')).split('.')[-1] not in ANNOTATION_LOADERS
    ]


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
        try:
            meta = DATASETS.build(source).metainfo
        except (AssertionError, FileNotFoundError):
            # mmseg's VOC looks for its files even so.
            meta = {
                **getattr(resolve_type(source.type, [DATASETS]), 'METAINFO',
                          {}),
                **(source.get('metainfo') or {})
            }
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
