# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Focal loss per element."""
from typing import Tuple

import torch
from torch import Tensor

from .common import compute_dtype


def _focal_terms(
        input: Tensor, target: Tensor, weight: Tensor,
        alpha: float) -> Tuple[Tensor, Tensor, Tensor]:
    """Return logits of the true class' side, its sign and its factor."""
    logits = input.to(compute_dtype(input))
    classes = torch.arange(input.size(1), device=input.device)
    positive = target[:, None] == classes
    factor = torch.where(positive, alpha, 1 - alpha).to(logits)
    if weight.numel():
        factor = factor * weight[target][:, None]
    sign = torch.where(positive, 1, -1).to(logits)
    return logits * sign, sign, factor


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor,
                               output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Focal loss (https://arxiv.org/abs/1708.02002, eq. 5) per element.

    mmdet computes it in torch on a CPU; on a GPU it asks for this op.

    Args:
        input (Tensor): Logits (N, C).
        target (Tensor): (N,) int64; C means background.
        weight (Tensor): Factor of each class (C,), or empty.
        output (Tensor): (N, C), is filled.
        gamma (float): Focusing exponent.
        alpha (float): Weight of the positive side.
    """
    logits, _, factor = _focal_terms(input, target, weight, alpha)
    log_p = torch.nn.functional.logsigmoid(logits)
    output.copy_(-factor * torch.sigmoid(-logits)**gamma * log_p)


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor,
                                grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Fill the derivative of :func:`sigmoid_focal_loss_forward`."""
    logits, sign, factor = _focal_terms(input, target, weight, alpha)
    log_p = torch.nn.functional.logsigmoid(logits)
    p, rest = torch.sigmoid(logits), torch.sigmoid(-logits)
    grad_input.copy_(factor * sign * rest**gamma * (gamma * p * log_p - rest))
