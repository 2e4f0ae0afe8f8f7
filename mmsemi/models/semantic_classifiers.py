# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A head's last layer, with a semantic branch beside it."""
from typing import Any

from torch import Tensor, nn

from mmsemi.registry import MODELS
from .semantic_branch import SemanticBranch


@MODELS.register_module()
class SemanticClsPredictor(nn.Linear):
    """A linear classifier whose logits are fused with the class names'.

    For ``cls_predictor_cfg`` of mmdet's box heads, which set the first two
    arguments. Weight and bias keep their names, so that a checkpoint without
    the branch loads into it; the branch is new then.

    With a head that is no :class:`SemanticBBoxMixin` the auxiliary loss is
    not learned.

    Args:
        in_features (int): Width d of the features.
        out_features (int): Number of logits: the classes that have texts,
            and the background.
        **branch: Further arguments of :class:`SemanticBranch`, such as
            ``text_embeddings``.

    Raises:
        ValueError: See :class:`SemanticBranch`.
    """

    def __init__(self, in_features: int, out_features: int,
                 **branch: Any) -> None:
        super().__init__(in_features, out_features)
        self.branch = SemanticBranch(
            num_classes=out_features - 1, in_channels=in_features, **branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return fused logits.

        Args:
            x (Tensor): Features (..., d).

        Returns:
            Tensor: (..., C + 1).
        """
        return self.branch(x, super().forward)

    def init_weights(self) -> None:
        """Initialise the branch, after what the head did to all below it."""
        self.branch.init_weights()


class SemanticConvSeg(nn.Conv2d):
    """A 1 x 1 convolution whose logits are fused with the class names'.

    The last layer of mmseg's decode heads, where every class has a text, the
    background too. Weight and bias keep their names.

    Args:
        in_channels (int): Channels d of the features.
        out_channels (int): Number C of classes.
        **branch: Further arguments of :class:`SemanticBranch`.

    Raises:
        ValueError: See :class:`SemanticBranch`.
    """

    def __init__(self, in_channels: int, out_channels: int,
                 **branch: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)
        self.branch = SemanticBranch(
            num_classes=out_channels,
            in_channels=in_channels,
            background=False,
            **branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return fused logits.

        Args:
            x (Tensor): Features (N, d, H, W).

        Returns:
            Tensor: (N, C, H, W).
        """
        if self.branch.mode == 'feature':
            return super().forward(self.branch.condition_maps(x))
        logits = super().forward(x).movedim(1, -1)
        return self.branch(x.movedim(1, -1), logits).movedim(-1, 1)

    def init_weights(self) -> None:
        """Initialise the branch, after what the head did to all below it."""
        self.branch.init_weights()
