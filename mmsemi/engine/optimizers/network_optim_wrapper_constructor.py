# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""One optimizer for each network of a model."""
import copy
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from torch import Tensor, nn

from mmsemi.registry import OPTIM_WRAPPER_CONSTRUCTORS


class JointOptimWrapper(OptimWrapperDict):
    """Optimizers that step together after one backward pass of one loss.

    mmengine's ``OptimWrapperDict`` leaves the order of steps to the model.
    Here the loss is the sum of what each optimizer minimises, so a model's
    own ``train_step`` and that of distributed wrappers work as they are, with
    accumulated gradients and half precision. Gradients are clipped by
    optimizer. With half precision all share one loss scale; where a gradient
    of one network overflows, only that network skips its step.

    Args:
        **optim_wrappers (OptimWrapper): Wrappers of one type with equal
            ``accumulative_counts``, by name.

    Raises:
        ValueError: If there is none, or they differ.
    """

    def __init__(self, **optim_wrappers: OptimWrapper) -> None:
        super().__init__(**optim_wrappers)
        kinds = {(type(wrapper).__name__, wrapper._accumulative_counts)
                 for wrapper in optim_wrappers.values()}
        if len(kinds) != 1:
            raise ValueError(
                'Optimizer wrappers that step together must be of one type '
                'with equal accumulative_counts, got '
                f'{sorted(kinds) or "none"}.')
        self.first = next(iter(optim_wrappers.values()))
        self.loss_scaler = getattr(self.first, 'loss_scaler', None)
        if self.loss_scaler is not None:
            # One backward pass has one scale.
            for wrapper in optim_wrappers.values():
                wrapper.loss_scaler = self.loss_scaler

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter what all wrappers share: precision, gradients kept local.

        Args:
            model (nn.Module): The model, maybe wrapped.
        """
        with self.first.optim_context(model):
            yield

    def initialize_count_status(self, model: nn.Module, init_counts: int,
                                max_counts: int) -> None:
        """Tell all wrappers where the training stands.

        Args:
            model (nn.Module): The model.
            init_counts (int): Iterations done.
            max_counts (int): Iterations in all.
        """
        for wrapper in self.values():
            wrapper.initialize_count_status(model, init_counts, max_counts)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Divide a loss by the number of iterations per step."""
        return self.first.scale_loss(loss)

    def should_update(self) -> bool:
        """Return whether this iteration ends with a step."""
        return self.first.should_update()

    def should_sync(self) -> bool:
        """Return whether this iteration's gradients are to be exchanged."""
        return self.first.should_sync()

    def update_params(self,
                      loss: Tensor,
                      step_kwargs: Optional[Dict[str, Any]] = None,
                      zero_kwargs: Optional[Dict[str, Any]] = None) -> None:
        """Compute all gradients and let all optimizers step.

        Args:
            loss (Tensor): The loss of all networks.
            step_kwargs (dict, optional): For each optimizer's ``step``.
            zero_kwargs (dict, optional): For each ``zero_grad``.
        """
        self.backward(self.scale_loss(loss))
        if self.should_update():
            self.step(**(step_kwargs or {}))
            self.zero_grad(**(zero_kwargs or {}))

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Compute all gradients.

        Args:
            loss (Tensor): Scaled loss of all networks.
            **kwargs: For ``torch.Tensor.backward``.
        """
        self.first.backward(loss, **kwargs)
        for wrapper in self.values():
            wrapper._inner_count = self.first._inner_count

    def step(self, **kwargs: Any) -> None:
        """Clip gradients and let every optimizer step.

        Args:
            **kwargs: For each optimizer's ``step``.
        """
        if self.loss_scaler is None:
            for wrapper in self.values():
                wrapper.step(**kwargs)
            return
        # The scale may change only after all have used it, which the
        # wrappers' own step would not wait for.
        for wrapper in self.values():
            if wrapper.clip_grad_kwargs:
                self.loss_scaler.unscale_(wrapper.optimizer)
                wrapper._clip_grad()
            self.loss_scaler.step(wrapper.optimizer, **kwargs)
        self.loss_scaler.update(self.first._scale_update_param)

    def zero_grad(self, **kwargs: Any) -> None:
        """Clear all gradients.

        Args:
            **kwargs: For each optimizer's ``zero_grad``.
        """
        for wrapper in self.values():
            wrapper.zero_grad(**kwargs)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class NetworkOptimWrapperConstructor:
    """Optimise every network of a model by an optimizer of its own.

    As in the released code of CPS. Another constructor gets each network as
    if it were trained alone: it sees names like ``backbone.layer1``, not
    ``networks.0.backbone.layer1``, which is what layer-wise learning rate
    decay looks at, and gradients are clipped by network. Schedulers of the
    config apply to each; learning rates are logged as ``networks.0.lr``.

    Args:
        optim_wrapper_cfg (dict): Optimizer wrapper and optimizer of each
            network.
        paramwise_cfg (dict, optional): Settings for the other constructor,
            and its type under ``constructor`` (by default
            'DefaultOptimWrapperConstructor'). Defaults to None.

    Raises:
        TypeError: If the model has no networks.
        ValueError: If the model has trainable weights outside of them, which
            would be left out.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.0025, momentum=0.9,
        ...                    weight_decay=1e-4),
        ...     constructor='mmsemi.NetworkOptimWrapperConstructor',
        ...     paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.))
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

    def __call__(self, model: nn.Module) -> JointOptimWrapper:
        """Build the optimizer wrappers.

        Args:
            model (nn.Module): A model with ``networks``, wrapped or not.

        Returns:
            JointOptimWrapper: One wrapper per network, named 'networks.0',
            'networks.1', ...
        """
        while is_model_wrapper(model):
            model = model.module
        networks = getattr(model, 'networks', None)
        if not isinstance(networks, nn.ModuleList):
            raise TypeError(
                'mmsemi.NetworkOptimWrapperConstructor (optim_wrapper.'
                'constructor) needs a model with several networks, such as '
                f'mmsemi.CPS, but {type(model).__name__} has none.')
        inside = {id(param) for param in networks.parameters()}
        outside = [
            name for name, param in model.named_parameters()
            if param.requires_grad and id(param) not in inside
        ]
        if outside:
            raise ValueError(
                'mmsemi.NetworkOptimWrapperConstructor would leave out '
                f'{len(outside)} trainable weights outside the networks, '
                f'such as {outside[:3]}. Use another optim_wrapper.'
                'constructor for this model.')
        return JointOptimWrapper(
            **{
                f'networks.{i}': build_optim_wrapper(network,
                                                     self.optim_wrapper_cfg)
                for i, network in enumerate(networks)
            })
