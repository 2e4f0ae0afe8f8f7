# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""mmseg's decode heads with the names of the classes beside the classifier."""
from functools import lru_cache
from typing import Any, Dict, List, Type

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS as MMSEG_MODELS
from torch import Tensor, nn

from mmsemi.models.semantic_classifiers import SemanticConvSeg
from mmsemi.registry import MODELS


class SemanticSegMixin:
    """A semantic branch for a subclass of mmseg's ``BaseDecodeHead``.

    The classifier ``conv_seg`` gets a branch, in which every class has a
    text, the background too. The semantic logits of the labelled images
    learn the head's own losses besides, named ``loss_ce_semantic`` and so
    on.

    Use it before the base class, or write ``mmsemi.SemanticSegHead`` in a
    config. A checkpoint without the branch loads into it.

    Args:
        *args: Arguments of the base class.
        semantic_branch (dict): Arguments of :class:`SemanticBranch` but
            ``num_classes``, ``in_channels`` and ``background``.
        **kwargs: Arguments of the base class.

    Raises:
        ValueError: If the head does not classify by ``conv_seg`` into more
            than one channel, or computes its losses in a way of its own and
            the auxiliary loss is not switched off; see also
            :class:`SemanticBranch`.
    """

    def __init__(self, *args: Any, semantic_branch: dict,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = type(self).__name__
        conv = getattr(self, 'conv_seg', None)
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1):
            raise ValueError(
                f'decode_head of type {name} has no conv_seg that classifies '
                'every pixel; a semantic branch needs it.')
        if conv.out_channels != self.num_classes:
            raise ValueError(
                f'decode_head.out_channels={conv.out_channels}; with a '
                'semantic branch it must be the number of classes, '
                f'{self.num_classes}, the background among them.')
        self.conv_seg = SemanticConvSeg(conv.in_channels, conv.out_channels,
                                        **semantic_branch)
        plain = (
            super().loss_by_feat.__func__ is BaseDecodeHead.loss_by_feat)
        if self.conv_seg.branch.aux_weight and not plain:
            raise ValueError(
                f'decode_head of type {name} computes its losses in a way of '
                'its own, which the auxiliary loss cannot follow. Set '
                'semantic_branch.aux_weight=0.')
        # Between the forward pass and its loss.
        self._semantic_logits: List[Tensor] = []

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return fused logits; see the base class."""
        with self.conv_seg.branch.recording() as recorded:
            outputs = super().forward(*args, **kwargs)
        self._semantic_logits = recorded
        return outputs

    def loss_by_feat(self, seg_logits: Tensor,
                     batch_data_samples: list) -> Dict[str, Tensor]:
        """Compute the losses of labelled images; see the base class.

        Args:
            seg_logits (Tensor): Fused logits (M, C, h, w) of the latest
                forward pass, or of its first M images.
            batch_data_samples (list[SegDataSample]): Of the M images.

        Returns:
            dict[str, Tensor]: The head's losses, and those of the semantic
            logits with '_semantic' behind their names.
        """
        recorded, self._semantic_logits = self._semantic_logits, []
        losses = super().loss_by_feat(seg_logits, batch_data_samples)
        for logits in recorded[-1:]:
            logits = logits.movedim(-1, 1)[:len(seg_logits)]
            semantic = super().loss_by_feat(logits, batch_data_samples)
            for name, value in semantic.items():
                if 'loss' in name:
                    value = self.conv_seg.branch.aux_weight * value
                losses[f'{name}_semantic'] = value
        return losses


@lru_cache(maxsize=None)
def semantic_head_class(base: Type[nn.Module]) -> Type[nn.Module]:
    """Return a decode head's class with :class:`SemanticSegMixin`.

    Args:
        base (type): A subclass of ``BaseDecodeHead``.

    Returns:
        type: Named after it, the same for every call.
    """
    name = f'Semantic{base.__name__}'
    doc = f'{base.__name__} with a semantic branch.'
    return type(name, (SemanticSegMixin, base), dict(__doc__=doc))


@MODELS.register_module(name='SemanticSegHead')
def semantic_seg_head(head_type: str, semantic_branch: dict,
                      **kwargs: Any) -> nn.Module:
    """Build any decode head of mmseg with a semantic branch.

    In a config that inherits a decode head, only three fields change::

        decode_head=dict(
            type='mmsemi.SemanticSegHead',
            head_type='mmseg.DepthwiseSeparableASPPHead',
            semantic_branch=dict(text_embeddings='classes.pt'))

    Args:
        head_type (str): The head's own type.
        semantic_branch (dict): See :class:`SemanticSegMixin`.
        **kwargs: Arguments of the head.

    Returns:
        nn.Module: The head; also an instance of its own type.

    Raises:
        ValueError: If there is no such decode head; see also
            :class:`SemanticSegMixin`.
    """
    base = MMSEG_MODELS.get(head_type)
    if not isinstance(base, type) or not issubclass(base, BaseDecodeHead):
        raise ValueError(
            f'SemanticSegHead.head_type={head_type!r}; allowed are types of '
            "decode heads, such as 'mmseg.FCNHead'.")
    return semantic_head_class(base)(semantic_branch=semantic_branch, **kwargs)
