# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Stages that change the probabilities that a student learns."""
import math
from typing import List

from mmengine.structures import BaseDataElement, InstanceData

from mmsemi.registry import TRANSFORMS
from .pipeline import PseudoLabelStage
from .soft_label_correction import rescale_logits


@TRANSFORMS.register_module()
class SharpenSoftLabels(PseudoLabelStage):
    """Make soft labels of instances more certain, or less.

    A row q becomes :math:`q_k^{1/T} / \\sum_j q_j^{1/T}`; labels and scores
    stay, so that a filter sees the teacher's own wherever it stands.

    Q. Xie et al., Unsupervised Data Augmentation for Consistency Training
    (UDA), NeurIPS 2020 (arXiv 1904.12848), sharpens so with T = 0.4. It
    classifies images; that the rows of instances have the background for
    one more class is a choice here.

    Args:
        temperature (float): T, above 0; 1 changes nothing, below 1 rows get
            more certain. Defaults to 0.4.

    Raises:
        ValueError: If T is no number above 0.
    """

    requires = ('soft_labels', )
    writes = ('soft_labels', )

    def __init__(self, temperature: float = 0.4) -> None:
        super().__init__()
        if not isinstance(temperature,
                          (int, float)) or not 0 < temperature < math.inf:
            raise ValueError(f'SharpenSoftLabels.temperature={temperature!r};'
                             ' allowed are numbers above 0.')
        self.temperature = float(temperature)

    def forward(self, pseudo_labels: List[InstanceData],
                data_samples: List[BaseDataElement]) -> List[InstanceData]:
        """Sharpen a batch; see :class:`PseudoLabelStage`."""
        return [self._sharpened(label) for label in pseudo_labels]

    def _sharpened(self, label: InstanceData) -> InstanceData:
        label = label.new()
        label.soft_labels = rescale_logits(
            label.soft_labels, slope=1 / self.temperature)
        return label

    def extra_repr(self) -> str:
        """Return the settings."""
        return f'temperature={self.temperature}'
