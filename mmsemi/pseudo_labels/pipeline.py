# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What stands between teacher and student: a list of small stages."""
from abc import ABCMeta, abstractmethod
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch.nn as nn
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmsemi.registry import TRANSFORMS


class PseudoLabelStage(nn.Module, metaclass=ABCMeta):
    """One step that turns pseudo-labels into better pseudo-labels.

    A stage draws no randomness of its own and leaves its input untouched.
    It is a module, so that what it learns (a calibration, say) is part of
    every checkpoint.
    """

    requires: Tuple[str, ...] = ()
    """Fields of a pseudo-label that must be there."""

    requires_any: Tuple[Tuple[str, ...], ...] = ()
    """Sets of fields of which one must be there, for stages that take
    several kinds of pseudo-label. None: no such stage."""

    writes: Tuple[str, ...] = ()
    """Fields that are there afterwards."""

    needs_image: bool = False
    """Whether the data samples must have ``image``, the teacher's view as
    (3, H, W) float, RGB from 0 to 255, padded like the batch."""

    figures: Mapping[str, Tensor] = {}
    """Scalars by name that describe the last batch, for the log."""

    step: int = 0
    """Optimizer steps since the end of the burn-in, for schedules. The
    pipeline sets it."""

    @abstractmethod
    def forward(
            self, pseudo_labels: List[BaseDataElement],
            data_samples: List[BaseDataElement]) -> List[BaseDataElement]:
        """Process the pseudo-labels of a batch.

        Args:
            pseudo_labels (list): One per image, in the teacher's view.
                Instances: InstanceData with ``bboxes`` (N, 4) in pixels,
                ``labels`` (N,), ``scores`` (N,) and, from models with
                masks, ``masks`` (N, H, W) bool. Every pixel:
                :class:`mmsemi.structures.dense_pseudo_label.\
DensePseudoLabel`.
            data_samples (list): The teacher view's data samples, without
                ground truth; see :func:`mmsemi.pseudo_labels.stage_samples`.

        Returns:
            list: Processed pseudo-labels in the same order.
        """


class PseudoLabelPipeline(nn.Module):
    """Stages in order, built from a config like a data pipeline.

    Args:
        stages (Sequence[dict or PseudoLabelStage]): The stages.
        fields (Sequence[str]): Fields that the teacher's answer carries.

    Raises:
        TypeError: If something listed is no stage.
        ValueError: If a stage needs a field that neither the teacher nor a
            stage before it provides.
    """

    def __init__(self, stages: Sequence[Union[dict, PseudoLabelStage]],
                 fields: Sequence[str]) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        available = set(fields)
        for i, stage in enumerate(stages):
            where = f'pseudo_label_pipeline[{i}]'
            if isinstance(stage, dict):
                stage = TRANSFORMS.build(stage)
            if not isinstance(stage, PseudoLabelStage):
                raise TypeError(
                    f'{where} is a {type(stage).__name__}, which is no '
                    'pseudo-label stage; stages are listed in '
                    'mmsemi.pseudo_labels.')
            missing = set(stage.requires) - available
            if not missing and stage.requires_any:
                missing = min((set(fields) - available
                               for fields in stage.requires_any), key=len)
            if missing:
                raise ValueError(
                    f'{where} ({type(stage).__name__}) needs '
                    f'{sorted(missing)}, but pseudo-labels carry only '
                    f'{sorted(available)} there.')
            available.update(stage.writes)
            self.stages.append(stage)

    def needs(self, field: str) -> bool:
        """Return whether some stage reads this field."""
        return any(field in stage.requires for stage in self.stages)

    @property
    def figures(self) -> Dict[str, Tensor]:
        """dict[str, Tensor]: Scalars that stages tell of the last batch."""
        return {
            name: value
            for stage in self.stages for name, value in stage.figures.items()
        }

    @property
    def needs_image(self) -> bool:
        """bool: Whether some stage looks at the teacher's view."""
        return any(stage.needs_image for stage in self.stages)

    def forward(self,
                pseudo_labels: List[BaseDataElement],
                data_samples: List[BaseDataElement],
                step: int = 0,
                end: Optional[PseudoLabelStage] = None
                ) -> List[BaseDataElement]:
        """Run all stages; see :meth:`PseudoLabelStage.forward`.

        Args:
            pseudo_labels (list): One per image.
            data_samples (list): The teacher view's data samples.
            step (int): Optimizer steps since the end of the burn-in.
                Defaults to 0.
            end (PseudoLabelStage, optional): Stop before this one, to see
                what comes to it. Defaults to None: run all.

        Returns:
            list: Processed pseudo-labels in the same order.
        """
        for stage in self.stages:
            if stage is end:
                break
            stage.step = step
            pseudo_labels = stage(pseudo_labels, data_samples)
        return pseudo_labels
