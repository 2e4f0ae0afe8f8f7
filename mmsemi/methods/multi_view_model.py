# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What every model that trains on several views of an image shares."""
import copy
from abc import abstractmethod
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

from mmengine.model import BaseModel
from torch import Tensor, nn

from mmsemi.models import MultiBranchDataPreprocessor
from mmsemi.registry import MODELS


class MultiViewModel(BaseModel):
    """A model around one or several segmenters, trained on views.

    Args:
        segmentor (nn.Module): A built segmenter, for its preprocessor.
        predict_on (str): Which of :attr:`predictors` predicts.
        data_preprocessor (dict or nn.Module, optional): Preprocessor of one
            view. Defaults to None: that of the segmenter.
        init_cfg (dict, optional): Unused; the segmenter's own is applied.

    Raises:
        ValueError: If the segmenter has no preprocessor, or ``predict_on``
            is unknown.
    """

    predictors: Tuple[str, ...] = ()
    """Names of what can predict."""

    def __init__(self,
                 segmentor: nn.Module,
                 predict_on: str,
                 data_preprocessor: Optional[Union[dict, nn.Module]] = None,
                 init_cfg: Optional[dict] = None) -> None:
        if data_preprocessor is None:
            data_preprocessor = copy.deepcopy(segmentor.data_preprocessor)
        elif isinstance(data_preprocessor, dict):
            data_preprocessor = MODELS.build(data_preprocessor)
        # A wrapper of views, mmdet's or ours, may be given too.
        data_preprocessor = MultiBranchDataPreprocessor(
            getattr(data_preprocessor, 'data_preprocessor',
                    data_preprocessor))
        super().__init__(
            data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.predict_on = predict_on

    @staticmethod
    def check_preprocessor(
            config: Mapping,
            data_preprocessor: Optional[Union[dict, nn.Module]]) -> None:
        """Raise ValueError if nobody defines a preprocessor."""
        if data_preprocessor is None and config.get(
                'data_preprocessor') is None:
            raise ValueError(
                'segmentor has no data_preprocessor and none was given; '
                "mmdet models use dict(type='mmdet.DetDataPreprocessor', "
                "...), mmseg models dict(type='mmseg.SegDataPreProcessor', "
                '...).')

    @property
    def predict_on(self) -> str:
        """str: What predicts, one of :attr:`predictors`."""
        return self._predict_on

    @predict_on.setter
    def predict_on(self, value: str) -> None:
        if value not in self.predictors:
            allowed = ' and '.join(map(repr, self.predictors))
            raise ValueError(f'predict_on={value!r}; allowed are {allowed}.')
        self._predict_on = value

    @property
    @abstractmethod
    def predictor(self) -> nn.Module:
        """nn.Module: The segmenter that predicts now."""

    @abstractmethod
    def loss(self, inputs: Dict[str, Tensor],
             data_samples: Dict[str, list]) -> Dict[str, Tensor]:
        """Compute losses on the views of a batch."""

    def predict(self, inputs: Tensor, data_samples: list) -> list:
        """Predict.

        Args:
            inputs (Tensor): Images (N, C, H, W).
            data_samples (list): Their data samples.

        Returns:
            list: The data samples with predictions.
        """
        return self.predictor(inputs, data_samples, mode='predict')

    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        """Compute losses, predictions or raw outputs.

        Args:
            inputs (dict[str, Tensor] or Tensor): With mode 'loss' the views'
                images; else images (N, C, H, W).
            data_samples (dict[str, list] or list): The data samples.
            mode (str): 'loss', 'predict' or 'tensor'. Defaults to 'tensor'.

        Returns:
            dict[str, Tensor] or whatever the segmenter returns.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        return self.predictor(inputs, data_samples, mode=mode)

    def _check_views(self, inputs, views: Sequence[str]) -> None:
        if not isinstance(inputs, dict):
            raise TypeError(
                f'{type(self).__name__} trains on batches of views, got '
                f'{type(inputs).__name__}. Put mmsemi.MultiBranch at the end '
                'of the training pipelines and use collate_fn=dict('
                "type='pseudo_collate').")
        missing = [view for view in views if view not in inputs]
        if missing:
            raise ValueError(
                f'The batch lacks the views {missing}; it has '
                f'{sorted(inputs)}. Check branch_field of mmsemi.MultiBranch '
                'and source_ratio of mmsemi.MultiSourceSampler.')


def without_prefix(state_dict: Mapping[str, Tensor],
                   prefix: str) -> Dict[str, Tensor]:
    """Return the entries under a prefix, by the rest of their names."""
    return {
        key[len(prefix):]: value
        for key, value in state_dict.items() if key.startswith(prefix)
    }


def matching_weights(state_dict: Mapping[str, Tensor],
                     module: nn.Module) -> List[str]:
    """List the weights that fit a module by name and shape.

    Integers do not count: the counters of batch norm fit any model.
    """
    known = module.state_dict()
    return [
        key for key, value in state_dict.items()
        if key in known and known[key].is_floating_point()
        and getattr(value, 'shape', None) == known[key].shape
    ]


def scale_losses(losses: Mapping[str, Union[Tensor, List[Tensor]]],
                 weight: float, prefix: str) -> Dict[str, Tensor]:
    """Weight losses and prefix their names; the input stays as it is.

    Args:
        losses (Mapping): Tensors or lists of tensors by name. Only names
            that contain 'loss' are weighted, as mmengine sums only those.
        weight (float): The factor.
        prefix (str): Put before every name.

    Returns:
        dict[str, Tensor]: The scaled losses.
    """
    scaled = {}
    for name, value in losses.items():
        if 'loss' in name:
            value = ([v * weight for v in value]
                     if isinstance(value, (list, tuple)) else value * weight)
        scaled[prefix + name] = value
    return scaled
