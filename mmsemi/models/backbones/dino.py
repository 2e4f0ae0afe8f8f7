# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""DINOv2 and DINOv3 vision transformers, loaded through transformers."""
from typing import Any, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmsemi.compat import install_command, is_installed
from mmsemi.registry import MODELS

MODEL_TYPES = ('dinov2', 'dinov2_with_registers', 'dinov3_vit')
# Pre-training shifts and rescales DINOv3's positions at random.
POSITION_NOISE = ('pos_embed_shift', 'pos_embed_jitter', 'pos_embed_rescale')


@MODELS.register_module()
class DINOBackbone(BaseModule):
    """A DINO vision transformer that returns maps of several blocks.

    The weights are loaded by :meth:`init_weights`, as mmseg loads those of
    its backbones, so a model can be built, and a checkpoint of it tested,
    without network. Images whose sides are no multiples of the patch are
    resized to the nearest multiples, as UniMatch V2 does when it tests.

    Blocks after the last of ``out_indices`` are not built. The maps pass the
    final layer norm.

    Args:
        out_indices (Sequence[int]): The blocks whose outputs are returned,
            from 0, ascending. Defaults to (2, 5, 8, 11).
        model_name (str, optional): Name on the Hugging Face hub, such as
            'facebook/dinov2-small', or a folder with ``config.json`` and
            ``model.safetensors``. Defaults to None: random weights.
        config (dict, optional): The architecture: ``model_type`` ('dinov2',
            'dinov2_with_registers' or 'dinov3_vit') and the fields of that
            type's config in transformers. Defaults to None: that of
            ``model_name``, read when the model is built.
        frozen (bool): Keep the weights, the evaluation mode and compute no
            gradients, also in training. Defaults to False.

    Raises:
        ImportError: If transformers is not installed.
        OSError: If ``model_name`` is no folder and cannot be fetched.
        ValueError: If an argument is out of range, or the weights do not fit
            ``config``.

    Sources: Oquab et al., DINOv2, 2023; Simeoni et al., DINOv3, 2025.
    """

    def __init__(self,
                 out_indices: Sequence[int] = (2, 5, 8, 11),
                 model_name: Optional[str] = None,
                 config: Optional[dict] = None,
                 frozen: bool = False) -> None:
        # An init_cfg would only serve to overwrite the weights.
        super().__init__(init_cfg=None)
        if not is_installed('transformers'):
            raise ImportError(
                'mmsemi.DINOBackbone needs transformers. Install it:\n  '
                f'{install_command(["transformers"])}')
        if model_name is None and config is None:
            raise ValueError(
                'mmsemi.DINOBackbone needs model_name (weights) or config '
                '(an architecture with random weights).')
        self.model_name = model_name
        self.frozen = frozen
        self.out_indices = tuple(out_indices)
        architecture = _read_config(model_name) if config is None else \
            _make_config(config)
        num_blocks = architecture.num_hidden_layers
        allowed = [i for i in range(num_blocks) if i in self.out_indices]
        if not allowed or allowed != list(self.out_indices):
            raise ValueError(
                f'backbone.out_indices={self.out_indices}; allowed are '
                f'ascending numbers from 0 to {num_blocks - 1}, because '
                f'{model_name or "config"} has {num_blocks} blocks.')
        self.model = _build(architecture, self.out_indices)
        self.patch_size = int(architecture.patch_size)
        self.embed_dims = int(architecture.hidden_size)
        # Pre-training alone uses it. DistributedDataParallel refuses
        # parameters that get no gradient.
        mask_token = getattr(self.model.embeddings, 'mask_token', None)
        if mask_token is not None:
            mask_token.requires_grad = False
        if frozen:
            self.model.requires_grad_(False)
            self.model.eval()

    def init_weights(self) -> None:
        """Load the weights of ``model_name``.

        Without it, and when called again, the weights stay as they are.

        Raises:
            OSError: If the weights cannot be read.
            ValueError: If they do not fit the architecture.
        """
        if self.model_name is not None and not self._is_init:
            self.model.load_state_dict(
                _read_weights(self.model_name, self.model))
        self._is_init = True

    def train(self, mode: bool = True) -> 'DINOBackbone':
        """Set the mode; a frozen model keeps evaluating."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, inputs: Tensor) -> Tuple[Tensor, ...]:
        """Return the maps of the blocks.

        Args:
            inputs (Tensor): Normalised images (N, 3, H, W).

        Returns:
            tuple[Tensor]: Of each block (N, C, h, w), where h and w are H
            and W in patches, rounded. Class and register tokens are left
            out.
        """
        size = [
            max(int(side / self.patch_size + 0.5), 1) * self.patch_size
            for side in inputs.shape[2:]
        ]
        if size != list(inputs.shape[2:]):
            inputs = F.interpolate(
                inputs, size, mode='bilinear', align_corners=True)
        with torch.set_grad_enabled(torch.is_grad_enabled()
                                    and not self.frozen):
            return tuple(self.model(pixel_values=inputs).feature_maps)


def _make_config(fields: dict) -> Any:
    from transformers import CONFIG_MAPPING
    fields = dict(fields)
    model_type = fields.pop('model_type', None)
    if model_type not in MODEL_TYPES or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f'backbone.config.model_type={model_type!r}; allowed are '
            f'{[name for name in MODEL_TYPES if name in CONFIG_MAPPING]}.')
    config_type = CONFIG_MAPPING[model_type]
    known = config_type().to_dict()
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(f'backbone.config has the fields {unknown}, which '
                         f'{config_type.__name__} of transformers does not '
                         'know.')
    for name in POSITION_NOISE:
        if name in known:
            fields.setdefault(name, None)
    return config_type(**fields)


def _read_config(model_name: str) -> Any:
    from transformers import AutoConfig
    try:
        config = AutoConfig.from_pretrained(model_name)
    except (OSError, ValueError) as error:
        raise OSError(_unreadable(model_name, error)) from error
    if config.model_type not in MODEL_TYPES:
        raise ValueError(
            f'backbone.model_name={model_name!r} is of type '
            f'{config.model_type!r}; allowed are {list(MODEL_TYPES)}.')
    for name in POSITION_NOISE:
        if hasattr(config, name):
            setattr(config, name, None)
    return config


def _build(config: Any, out_indices: Sequence[int]) -> nn.Module:
    from transformers import AutoBackbone
    fields = config.to_dict()
    for name in ('out_features', 'out_indices', 'stage_names'):
        fields.pop(name, None)
    fields.update(
        num_hidden_layers=out_indices[-1] + 1,
        # transformers counts the patch embedding as stage 0.
        out_indices=[index + 1 for index in out_indices],
        apply_layernorm=True,
        reshape_hidden_states=True)
    return AutoBackbone.from_config(type(config)(**fields))


def _read_weights(model_name: str, model: nn.Module) -> dict:
    """Return the weights as the state dict of a model of this config."""
    try:
        loaded, info = type(model).from_pretrained(
            model_name,
            config=model.config,
            dtype=torch.float32,
            # Other files would be pickles.
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True)
    except (OSError, ValueError) as error:
        raise OSError(_unreadable(model_name, error)) from error
    wrong: List[str] = sorted(
        {*info['missing_keys'],
         *(entry[0] for entry in info['mismatched_keys'])})
    if wrong:
        raise ValueError(
            f'The weights of backbone.model_name={model_name!r} do not fit '
            f'backbone.config: {len(wrong)} are missing or of another shape, '
            f'among them {wrong[:3]}.')
    return loaded.state_dict()


def _unreadable(model_name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return (f'backbone.model_name={model_name!r} is neither a folder with '
            'config.json and model.safetensors nor a model that the Hugging '
            'Face hub lets this machine fetch (network? licence accepted and '
            f'logged in?). transformers says: {reason[0]}')
