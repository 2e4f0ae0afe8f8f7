# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""RoIAlign, written as products with sparse matrices."""
import math
from functools import wraps
from typing import Callable, Iterator, Tuple

import torch
from torch import Tensor

from . import common

#: Interpolation weights that RoIAlign holds in memory at a time.
ROI_ALIGN_WEIGHTS = 2**22


def _sample_axis(start: Tensor, length: Tensor, bins: int, grid: int,
                 size: int) -> Tuple[Tensor, Tensor]:
    """Place RoIAlign's samples along one axis.

    Args:
        start (Tensor): (N,), start of each box in pixels of the feature map.
        length (Tensor): (N,), its length.
        bins (int): Bins along the axis.
        grid (int): Samples per bin.
        size (int): Length of the feature map.

    Returns:
        tuple[Tensor, Tensor]: Pixel indices (N, bins, 2 * grid) int64 and
        their weights; each sample reads two pixels. Samples more than one
        pixel outside have weight 0, nearer ones read the border.
    """
    bin_size = (length / bins)[:, None, None]
    number = torch.arange(bins, device=start.device).to(start)[:, None]
    step = torch.arange(grid, device=start.device).to(start) + 0.5
    position = (
        start[:, None, None] + number * bin_size + step * bin_size / grid)
    inside = (position >= -1) & (position <= size)
    position = torch.where(inside, position.clamp(min=0), 0)
    low = position.long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    to_high = torch.where(low < size - 1, position - low, 0)
    index = torch.stack([low, high], dim=-1)
    weight = torch.stack([1 - to_high, to_high], dim=-1) * inside[..., None]
    return index.flatten(2), weight.flatten(2)


def _roi_align_matrices(rois: Tensor, input_shape: Tuple[int, ...],
                        bins_h: int, bins_w: int, spatial_scale: float,
                        sampling_ratio: int,
                        aligned: bool) -> Iterator[Tuple[Tensor, Tensor]]:
    """Write RoIAlign as sparse matrices: bins = matrix @ pixels.

    Args:
        rois (Tensor): (N, 5): image, x1, y1, x2, y2 in pixels of the image.
        input_shape (tuple[int]): (B, C, H, W) of the feature map.
        bins_h (int): Bins along y.
        bins_w (int): Bins along x.
        spatial_scale (float): Feature map size over image size.
        sampling_ratio (int): Samples per bin and axis; 0: one per pixel.
        aligned (bool): Whether to shift by half a pixel.

    Yields:
        tuple[Tensor, Tensor]: Numbers of some bins (out of N * bins_h *
        bins_w) and the sparse matrix that makes them out of the B * H * W
        pixels. A bin of no matrix is 0.
    """
    batch, _, height, width = input_shape
    if len(rois) and not 0 <= rois[:, 0].min() <= rois[:, 0].max() < batch:
        raise IndexError(
            f'rois[:, 0] must number one of the {batch} images, got values '
            f'from {rois[:, 0].min()} to {rois[:, 0].max()}')
    shift = 0.5 if aligned else 0.0
    corners = rois[:, 1:] * spatial_scale - shift
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1)
    if sampling_ratio > 0:
        grids = torch.full_like(extent, sampling_ratio)
    else:
        grids = (extent / extent.new_tensor([bins_w, bins_h])).ceil()
    pieces, held = [], 0
    # Boxes with the same number of samples are handled together. Where that
    # is 0 or not finite, the box covers nothing and its bins stay 0.
    for grid in grids.unique(dim=0).tolist():
        if not all(0 < samples < math.inf for samples in grid):
            continue
        grid_w, grid_h = int(grid[0]), int(grid[1])
        chosen = (grids == grids.new_tensor(grid)).all(1).nonzero()[:, 0]
        ys, weight_y = _sample_axis(start[chosen, 1], extent[chosen, 1],
                                    bins_h, grid_h, height)
        xs, weight_x = _sample_axis(start[chosen, 0], extent[chosen, 0],
                                    bins_w, grid_w, width)
        first_row = rois[chosen, 0].long() * height
        # One row of bins is the unit of work: a box may be larger than what
        # fits in memory at once.
        ys = (ys + first_row[:, None, None]).flatten(0, 1)
        weight_y = weight_y.flatten(0, 1) / (grid_h * grid_w)
        owner = torch.arange(len(chosen), device=rois.device)
        owner = owner.repeat_interleave(bins_h)
        bin_row = torch.arange(bins_h, device=rois.device)
        bin_row = (chosen[:, None] * bins_h + bin_row).flatten()
        per_row = bins_w * 4 * grid_h * grid_w
        for rows in torch.arange(
                len(ys), device=rois.device).split(
                    max(ROI_ALIGN_WEIGHTS // per_row, 1)):
            columns = owner[rows]
            pixels = (
                ys[rows][:, None, :, None] * width +
                xs[columns][:, :, None, :])
            weights = (
                weight_y[rows][:, None, :, None] *
                weight_x[columns][:, :, None, :])
            numbers = bin_row[rows][:, None] * bins_w + torch.arange(
                bins_w, device=rois.device)
            pieces.append((numbers.flatten(), pixels.flatten(0, 1).flatten(1),
                           weights.flatten(0, 1).flatten(1)))
            held += weights.numel()
            if held >= ROI_ALIGN_WEIGHTS:
                yield _join(pieces, batch * height * width)
                pieces, held = [], 0
    if pieces:
        yield _join(pieces, batch * height * width)


def _join(pieces: list, num_pixels: int) -> Tuple[Tensor, Tensor]:
    """Join rows of different length to one sparse matrix."""
    numbers = torch.cat([piece[0] for piece in pieces])
    per_bin = torch.cat([
        torch.full_like(number, pixels.size(1))
        for number, pixels, _ in pieces
    ])
    row = torch.arange(len(numbers), device=numbers.device)
    row = row.repeat_interleave(per_bin)
    column = torch.cat([pixels.flatten() for _, pixels, _ in pieces])
    weight = torch.cat([weights.flatten() for _, _, weights in pieces])
    matrix = torch.sparse_coo_tensor(
        torch.stack([row, column]),
        weight, (len(numbers), num_pixels),
        check_invariants=False)
    return numbers, matrix


def _full_precision(function: Callable) -> Callable:
    """Turn autocast off: it would round weights and sums to half."""

    @wraps(function)
    def wrapper(input: Tensor, *args, **kwargs) -> None:
        with torch.autocast(input.device.type, enabled=False):
            function(input, *args, **kwargs)

    return wrapper


def _check_pool_mode(pool_mode: int) -> None:
    if pool_mode != 1:
        common.raise_uncompiled("roi_align with pool_mode='max'")


def _vision_roi_align(input: Tensor, rois: Tensor, size: Tuple[int, int],
                      spatial_scale: float, sampling_ratio: int,
                      aligned: bool) -> Tensor:
    return common.torchvision_ops().roi_align(
        input,
        rois.to(input.dtype),
        size,
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,
        aligned=aligned)


@_full_precision
def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor,
                      argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
                      aligned_width: int, spatial_scale: float,
                      sampling_ratio: int, pool_mode: int,
                      aligned: bool) -> None:
    """Average-pool boxes of a feature map, bilinearly sampled.

    Args:
        input (Tensor): (B, C, H, W).
        rois (Tensor): (N, 5): image, x1, y1, x2, y2 in pixels of the image.
        output (Tensor): (N, C, aligned_height, aligned_width), is filled.
        argmax_y (Tensor): Unused by average pooling.
        argmax_x (Tensor): Unused by average pooling.
        aligned_height (int): Bins along y.
        aligned_width (int): Bins along x.
        spatial_scale (float): Feature map size over image size.
        sampling_ratio (int): Samples per bin and axis; 0: one per pixel.
        pool_mode (int): 1 for average; 0 (max) is not served.
        aligned (bool): Whether to shift by half a pixel.

    Raises:
        RuntimeError: If ``pool_mode`` is 0.
    """
    _check_pool_mode(pool_mode)
    dtype = common.compute_dtype(input)
    if common.torchvision_ops() is not None:
        output.copy_(
            _vision_roi_align(
                input.to(dtype), rois, (aligned_height, aligned_width),
                spatial_scale, sampling_ratio, aligned))
        return
    channels = input.size(1)
    pixels = input.to(dtype).permute(0, 2, 3, 1).reshape(-1, channels)
    bins = pixels.new_zeros(
        len(rois) * aligned_height * aligned_width, channels)
    for numbers, matrix in _roi_align_matrices(
            rois.to(dtype), input.shape, aligned_height, aligned_width,
            spatial_scale, sampling_ratio, aligned):
        bins[numbers] = torch.sparse.mm(matrix, pixels)
    output.copy_(
        bins.view(len(rois), aligned_height, aligned_width,
                  channels).permute(0, 3, 1, 2))


@_full_precision
def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor,
                       argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int,
                       spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Add the gradient of :func:`roi_align_forward` to ``grad_input``.

    Args:
        grad_output (Tensor): (N, C, aligned_height, aligned_width).
        grad_input (Tensor): (B, C, H, W), is added to.
        rois, argmax_y, argmax_x, aligned_height, aligned_width,
            spatial_scale, sampling_ratio, pool_mode, aligned: As in
            :func:`roi_align_forward`.

    Raises:
        RuntimeError: If ``pool_mode`` is 0.
    """
    _check_pool_mode(pool_mode)
    dtype = common.compute_dtype(grad_output)
    grad_output = grad_output.to(dtype)
    if common.torchvision_ops() is not None:
        with torch.enable_grad():
            input = torch.zeros_like(
                grad_input, dtype=dtype, requires_grad=True)
            output = _vision_roi_align(
                input, rois, (aligned_height, aligned_width), spatial_scale,
                sampling_ratio, aligned)
        grad_input += torch.autograd.grad(output, input, grad_output)[0]
        return
    batch, channels, height, width = grad_input.shape
    bins = grad_output.permute(0, 2, 3, 1).reshape(-1, channels)
    pixels = bins.new_zeros(batch * height * width, channels)
    for numbers, matrix in _roi_align_matrices(
            rois.to(dtype), grad_input.shape, aligned_height, aligned_width,
            spatial_scale, sampling_ratio, aligned):
        pixels += torch.sparse.mm(matrix.t(), bins[numbers])
    grad_input += pixels.view(batch, height, width,
                              channels).permute(0, 3, 1, 2)
