# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
from typing import Optional

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from mmsemi.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class StudentOptimWrapperConstructor:
    """Optimise the student as if it were trained alone.

    Another constructor gets the student instead of the whole model. It sees
    names like ``backbone.layer1``, not ``student.backbone.layer1``, which is
    what layer-wise learning rate decay and ``custom_keys`` look at, and no
    weight of the teacher.

    Args:
        optim_wrapper_cfg (dict): Optimizer wrapper and optimizer.
        paramwise_cfg (dict, optional): Settings for the other constructor,
            and its type under ``constructor`` (by default
            'DefaultOptimWrapperConstructor'). Defaults to None.

    Raises:
        TypeError: If the model has no student.
        ValueError: If the model has trainable weights outside the student,
            which would be left out.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4),
        ...     constructor='mmsemi.StudentOptimWrapperConstructor',
        ...     paramwise_cfg=dict(
        ...         constructor='mmdet.LearningRateDecayOptimizerConstructor',
        ...         decay_rate=0.7,
        ...         decay_type='layer_wise',
        ...         num_layers=6))
    """

    def __init__(self,
                 optim_wrapper_cfg: dict,
                 paramwise_cfg: Optional[dict] = None) -> None:
        if not isinstance(optim_wrapper_cfg, dict):
            raise TypeError('optim_wrapper must be a dict, got '
                            f'{type(optim_wrapper_cfg).__name__}.')
        paramwise_cfg = copy.deepcopy(paramwise_cfg or {})
        self.optim_wrapper_cfg = optim_wrapper_cfg.copy()
        self.optim_wrapper_cfg['constructor'] = paramwise_cfg.pop(
            'constructor', 'DefaultOptimWrapperConstructor')
        self.optim_wrapper_cfg['paramwise_cfg'] = paramwise_cfg or None

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper.

        Args:
            model (nn.Module): A model with ``student``, wrapped or not.

        Returns:
            OptimWrapper: The wrapper of the student's optimizer.
        """
        while is_model_wrapper(model):
            model = model.module
        student = getattr(model, 'student', None)
        if not isinstance(student, nn.Module):
            raise TypeError(
                'mmsemi.StudentOptimWrapperConstructor (optim_wrapper.'
                f'constructor) needs a model with a student, but '
                f'{type(model).__name__} has none. Name the constructor '
                'itself there instead of under paramwise_cfg.')
        inside = {id(param) for param in student.parameters()}
        outside = [
            name for name, param in model.named_parameters()
            if param.requires_grad and id(param) not in inside
        ]
        if outside:
            raise ValueError(
                'mmsemi.StudentOptimWrapperConstructor would leave out '
                f'{len(outside)} trainable weights outside the student, '
                f'such as {outside[:3]}. Use another optim_wrapper.'
                'constructor for this model.')
        return build_optim_wrapper(student, self.optim_wrapper_cfg)
