# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Which part of a model predicts, and whether a checkpoint holds it."""
from typing import List, Mapping, Optional

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmsemi.methods import MultiViewModel
from .checkpoints import check_teacher

#: What the weights of wrapped models start with.
PART_PREFIXES = ('teacher.', 'student.', 'networks.')


def default_scope(cfg: Config) -> str:
    """Return the scope of a config's bare types, mmdet if it names none."""
    return cfg.get('default_scope') or 'mmdet'


def build_wrapper(cfg: Config) -> Optional[MultiViewModel]:
    """Build a config's model if several models are in it.

    Args:
        cfg (Config): The config.

    Returns:
        MultiViewModel or None: None for a plain segmenter, which is not
        built.
    """
    init_default_scope(default_scope(cfg))
    if 'segmentor' not in cfg.model:
        return None
    model = MODELS.build(cfg.model)
    return model if isinstance(model, MultiViewModel) else None


def check_predictor(model: Optional[nn.Module],
                    which: str,
                    kind: str = 'segmenter') -> None:
    """Raise ValueError if a model has no predictor of this name.

    Args:
        model (nn.Module, optional): A built model. None and other models
            than a :class:`MultiViewModel` have a single predictor without a
            name.
        which (str): The name.
        kind (str): Type of a plain model, for the message. Defaults to
            'segmenter'.
    """
    if not isinstance(model, MultiViewModel):
        raise ValueError(f"The config's model is a plain {kind}, which has no "
                         f'{which}. Leave --model out.')
    if which not in model.predictors:
        allowed = ', '.join(map(repr, model.predictors))
        raise ValueError(f'model={which!r}; allowed with '
                         f'{type(model).__name__} and this config: {allowed}.')


def weight_prefix(which: str) -> str:
    """Return what the names of a part's weights start with.

    Args:
        which (str): 'teacher', 'student', 'network_0', ...

    Returns:
        str: For instance 'teacher.' or 'networks.0.'.
    """
    if which.startswith('network_'):
        return f'networks.{which[len("network_"):]}.'
    return f'{which}.'


def check_weights(model: Optional[MultiViewModel],
                  state_dict: Mapping,
                  which: Optional[str] = None,
                  kind: str = 'segmenter',
                  need_teacher: bool = False) -> None:
    """Refuse weights that would leave what predicts untrained.

    mmengine only warns of weights that fit nothing.

    Args:
        model (MultiViewModel, optional): The built model; None for a plain
            segmenter.
        state_dict (Mapping): Weights by name.
        which (str, optional): What predicts. Defaults to None:
            ``model.predict_on``.
        kind (str): Type of a plain model, for the message. Defaults to
            'segmenter'.
        need_teacher (bool): Whether a teacher that is to predict must have
            learnt something; else the student may stand in for it. Defaults
            to False.

    Raises:
        ValueError: If the checkpoint is of another kind of model, or does not
            hold what predicts.
    """
    parts = [
        prefix for prefix in PART_PREFIXES
        if any(key.startswith(prefix) for key in state_dict)
    ]
    if model is None:
        if parts:
            raise ValueError(
                f'The checkpoint holds {_listed(parts)}, but the config\'s '
                f'model is a plain {kind}. Test with the config of the '
                'training, or take one of them out with '
                'tools/export_model.py.')
        return
    which = which or model.predict_on
    names = [which] if which != 'mean' else [
        name for name in model.predictors if name != 'mean'
    ]
    prefixes = [weight_prefix(name) for name in names]
    if not parts:
        # A plain segmenter fills teacher and student, but of several
        # networks the first one alone.
        if prefixes[0].startswith('networks.') and prefixes != ['networks.0.']:
            raise ValueError(
                f'The checkpoint is of a plain segmenter, which fills '
                f'network_0 of {type(model).__name__}, but {which!r} predicts '
                '(model.predict_on). Take network_0.')
        return
    missing = [
        prefix for prefix in prefixes
        if not any(key.startswith(prefix) for key in state_dict)
    ]
    if missing:
        raise ValueError(
            f'The checkpoint holds {_listed(parts)}, but nothing of '
            f'{which!r}, which predicts (model.predict_on): none of its '
            f'weights starts with {missing[0]!r}. Is it of another method, or '
            'of one with other settings?')
    if which == 'teacher' and need_teacher:
        check_teacher(model.teacher_settings, int(state_dict.get('step', 0)),
                      int(state_dict.get('stage2_begin', 0)))


def _listed(parts: List[str]) -> str:
    names = dict(zip(PART_PREFIXES, ('a teacher', 'a student', 'networks')))
    return ' and '.join(names[part] for part in parts)
