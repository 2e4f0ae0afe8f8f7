# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Pseudo-labels of every pixel: of one image, and of a batch."""
from dataclasses import dataclass, replace
from typing import List, Optional, Sequence

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

#: Label of pixels that nobody knows, as in mmseg.
IGNORE_LABEL = 255


class DensePseudoLabel(BaseDataElement):
    """What a teacher says of every pixel of one image.

    Fields:

    - ``label`` (H, W) int64: class, or 255 where it is not known;
    - ``confidence`` (H, W) float in [0, 1]: probability of that class;
    - ``weight`` (H, W) float, not negative: weight in the student's loss,
      0 where the student does not learn. Stages lower it;
    - ``valid`` (H, W) bool: False on padding, which no stage changes;
    - ``prob`` (C, H, W) float: all probabilities, only where a stage or a
      method needs them;
    - ``matched`` bool, a scalar or (C,): whether what is not background, or
      each class, was replaced by mask proposals; only behind a stage that
      refines (:class:`mmsemi.RefineByProposals`, ``mmsemi.SAMRefine``).
    """


@dataclass
class DenseTargets:
    """Dense pseudo-labels of a batch.

    Args:
        label (Tensor): (N, H, W) int64.
        confidence (Tensor): (N, H, W) float.
        weight (Tensor): (N, H, W) float.
        valid (Tensor): (N, H, W) bool.
        prob (Tensor, optional): (N, C, H, W) float. Defaults to None.
        matched (Tensor, optional): (N,) or (N, C) bool. Defaults to None.
    """

    label: Tensor
    confidence: Tensor
    weight: Tensor
    valid: Tensor
    prob: Optional[Tensor] = None
    matched: Optional[Tensor] = None

    @classmethod
    def from_pseudo_labels(
            cls, pseudo_labels: Sequence[DensePseudoLabel]) -> 'DenseTargets':
        """Stack the pseudo-labels of a batch.

        Args:
            pseudo_labels (Sequence[DensePseudoLabel]): Of one size.

        Returns:
            DenseTargets: The batch.
        """
        fields = ['label', 'confidence', 'weight', 'valid']
        fields += [
            field for field in ('prob', 'matched')
            if all(field in label for label in pseudo_labels)
        ]
        return cls(
            **{
                field: torch.stack([label.get(field)
                                    for label in pseudo_labels])
                for field in fields
            })

    @classmethod
    def from_logits(cls,
                    logits: Tensor,
                    valid: Tensor,
                    with_prob: bool = False) -> 'DenseTargets':
        """Take the likeliest class of every pixel.

        Args:
            logits (Tensor): (N, C, H, W).
            valid (Tensor): (N, H, W) bool.
            with_prob (bool): Whether to keep all probabilities. Defaults to
                False.

        Returns:
            DenseTargets: With weight 1 where valid.
        """
        logits = logits.detach()
        dtype = torch.promote_types(logits.dtype, torch.float32)
        prob = logits.softmax(1, dtype=dtype)
        confidence, label = prob.max(1)
        return cls(label, confidence, valid.to(confidence), valid,
                   prob if with_prob else None)

    def unbind(self) -> List[DensePseudoLabel]:
        """Return the pseudo-labels of the images, without copying."""
        fields = {
            name: value
            for name, value in vars(self).items() if value is not None
        }
        return [
            DensePseudoLabel(
                **{name: value[i]
                   for name, value in fields.items()})
            for i in range(len(self.label))
        ]

    def replace(self, **fields: Tensor) -> 'DenseTargets':
        """Return a copy with other fields."""
        return replace(self, **fields)


def valid_pixels(data_samples: Sequence[BaseDataElement],
                 shape: Sequence[int],
                 device: Optional[torch.device] = None) -> Tensor:
    """Tell image from padding.

    Args:
        data_samples (Sequence[BaseDataElement]): N samples with
            ``img_shape``, the height and width before padding at the right
            and at the bottom.
        shape (Sequence[int]): Height and width of the batch.
        device (torch.device, optional): Of the result. Defaults to None:
            the CPU.

    Returns:
        Tensor: (N, H, W) bool, True on the image.

    Raises:
        ValueError: If a sample was padded at the left or at the top.
    """
    height, width = shape[-2:]
    valid = torch.zeros((len(data_samples), height, width),
                        dtype=torch.bool,
                        device=device)
    for image, sample in zip(valid, data_samples):
        left, _, top, _ = sample.get('padding_size', (0, 0, 0, 0))
        if left or top:
            raise ValueError(
                f'A view is padded by {left} pixels at the left and {top} at '
                'the top; only padding at the right and at the bottom is '
                'known (data_preprocessor.size).')
        h, w = sample.img_shape[:2]
        image[:h, :w] = True
    return valid
