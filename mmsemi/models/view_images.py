# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Pictures out of what a model gets."""
import torch
from torch import Tensor, nn


def view_images(inputs: Tensor, data_preprocessor: nn.Module) -> Tensor:
    """Undo the normalisation of a batch of views.

    Args:
        inputs (Tensor): (N, 3, H, W) or (N, 1, H, W), as the model gets
            them.
        data_preprocessor (nn.Module): The preprocessor that made them, or
            the :class:`mmsemi.MultiBranchDataPreprocessor` around it. Images
            are taken to be loaded in mmcv's order, BGR.

    Returns:
        Tensor: (N, 3, H, W), float32, RGB from 0 to 255.
    """
    inner = getattr(data_preprocessor, 'data_preprocessor', data_preprocessor)
    with torch.autocast(inputs.device.type, enabled=False):
        images = inputs.detach().float()
        if getattr(inner, '_enable_normalize', False):
            images = images * inner.std.to(images) + inner.mean.to(images)
    # The original family's mmseg has another name for it.
    is_rgb = getattr(inner, '_channel_conversion',
                     getattr(inner, 'channel_conversion', False))
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    elif not is_rgb:
        images = images.flip(1)
    return images.round().clamp(0, 255)
