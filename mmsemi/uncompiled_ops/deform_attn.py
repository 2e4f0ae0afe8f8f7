# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Multi-scale deformable attention."""
import torch
from torch import Tensor


def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor,
                           value_level_start_index: Tensor,
                           sampling_locations: Tensor,
                           attention_weights: Tensor,
                           im2col_step: int) -> Tensor:
    """Multi-scale deformable attention by mmcv's own torch function.

    mmcv uses that function on a CPU only; on a GPU it asks for this op.

    Args:
        value (Tensor): (B, sum of H * W, heads, channels).
        value_spatial_shapes (Tensor): (levels, 2), H and W.
        value_level_start_index (Tensor): Unused here.
        sampling_locations (Tensor): (B, queries, heads, levels, points, 2),
            x and y as a share of the level's size.
        attention_weights (Tensor): (B, queries, heads, levels, points).
        im2col_step (int): Unused here.

    Returns:
        Tensor: (B, queries, heads * channels).
    """
    from mmcv.ops.multi_scale_deform_attn import \
        multi_scale_deformable_attn_pytorch
    return multi_scale_deformable_attn_pytorch(
        value, value_spatial_shapes, sampling_locations,
        attention_weights).to(value.dtype)


def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor,
                            value_level_start_index: Tensor,
                            sampling_locations: Tensor,
                            attention_weights: Tensor, grad_output: Tensor,
                            grad_value: Tensor, grad_sampling_loc: Tensor,
                            grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    """Fill the three gradients of :func:`ms_deform_attn_forward`."""
    with torch.enable_grad():
        inputs = [
            tensor.detach().requires_grad_()
            for tensor in (value, sampling_locations, attention_weights)
        ]
        output = ms_deform_attn_forward(inputs[0], value_spatial_shapes,
                                        value_level_start_index, inputs[1],
                                        inputs[2], im2col_step)
    grads = torch.autograd.grad(output, inputs, grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight),
                            grads):
        target.copy_(grad)
