# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A wrapped model, given as a dict or as the name of a config."""
import copy
from typing import Union

from mmengine.config import Config, ConfigDict


def load_segmentor_config(segmentor: Union[str, dict],
                          field: str = 'segmentor') -> ConfigDict:
    """Return the model config that a wrapper is to train.

    Args:
        segmentor (str or dict): One of

            - a model config, ``dict(type='MaskRCNN', ...)``;
            - a config name ``'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'``
              or the path of a config file, whose ``model`` is taken;
            - ``dict(cfg_path=NAME, ...)``: that model with changes, merged
              as config inheritance does.
        field (str): Name of the config field, for messages.

    Returns:
        ConfigDict: The model config, a copy.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If ``segmentor`` is none of these, the config holds no
            model, or the dict neither ``type`` nor ``cfg_path``.
    """
    if isinstance(segmentor, str):
        return _load_named(segmentor, field)
    if not isinstance(segmentor, dict):
        raise ValueError(
            f'{field} must be a model config or the name of a config, got '
            f'{type(segmentor).__name__} {segmentor!r}.')
    segmentor = copy.deepcopy(dict(segmentor))
    if 'cfg_path' in segmentor:
        base = _load_named(segmentor.pop('cfg_path'), f'{field}.cfg_path')
        merged = Config(dict(model=base))
        merged.merge_from_dict(dict(model=segmentor))
        return merged.model
    if 'type' not in segmentor:
        raise ValueError(
            f"{field} has neither 'type' (a model config) nor 'cfg_path' "
            f'(the name of one); its keys are {sorted(segmentor)}.')
    return ConfigDict(segmentor)


def _load_named(name: str, field: str) -> ConfigDict:
    allowed = ('Allowed are the path of a config file and names like '
               "'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'.")
    if not isinstance(name, str):
        raise ValueError(f'{field}={name!r} is no string. {allowed}')
    try:
        if '::' in name:
            # A one-line child config is the documented way to reach configs
            # of installed packages by name.
            config = Config.fromstring(f'_base_ = [{name!r}]', '.py')
        else:
            config = Config.fromfile(name)
    except (OSError, ImportError, AssertionError) as error:
        # mmengine asserts that it knows the package.
        raise FileNotFoundError(
            f'{field}={name!r} is no config: {error}. {allowed}') from error
    except ValueError as error:
        raise ValueError(
            f'{field}={name!r} cannot be read: {error}. {allowed}') from error
    if 'model' not in config:
        raise ValueError(f'{field}={name!r} defines no model.')
    return config.model
