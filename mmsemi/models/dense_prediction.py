# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Semantic predictions at the images' own size.

mmseg's segmenters read ``test_cfg`` themselves and ignore fields that they do
not know. Models of mmsemi predict by :func:`predict_dense`, which reads two
more, so that a config says all::

    model = dict(segmentor=dict(test_cfg=dict(
        mode='slide', crop_size=(801, 801), stride=(534, 534),
        border='truncate', average='softmax')))
"""
from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Sequence, Tuple, Union

from torch import Tensor, nn

from .sliding_windows import (AVERAGES, BORDERS, as_pair, probabilities,
                              slide_logits, sliding_windows, window_metas)

MODES = ('whole', 'slide')
# Smallest probability whose logarithm is stored.
TINY = 1e-12


@dataclass(frozen=True)
class DenseTestSettings:
    """How a segmenter predicts: the fields of its ``test_cfg``.

    Args:
        mode (str): 'whole' takes the image at once, 'slide' in overlapping
            windows. Defaults to 'whole'.
        crop_size (int or Sequence[int], optional): Size of the windows in
            pixels, or height and width. Only with 'slide', where it is
            needed. Defaults to None.
        stride (int or Sequence[int], optional): Distance of the windows in
            pixels, or vertical and horizontal distance. As ``crop_size``.
        border (str): 'shift' or 'truncate'; see
            :func:`mmsemi.models.sliding_windows.sliding_windows`. Only with
            'slide'. Defaults to 'shift', as in mmseg.
        average (str): What is averaged where windows overlap, 'logits' or
            'softmax'. Only with 'slide'. Defaults to 'logits', as in mmseg.

    Raises:
        ValueError: If a value is out of range or a field does not fit the
            mode.
    """

    mode: str = 'whole'
    crop_size: Optional[Tuple[int, int]] = None
    stride: Optional[Tuple[int, int]] = None
    border: str = 'shift'
    average: str = 'logits'

    def __post_init__(self) -> None:
        for field, allowed in (('mode', MODES), ('border', BORDERS),
                               ('average', AVERAGES)):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f'test_cfg.{field}={getattr(self, field)!r}; allowed are '
                    f'{" and ".join(map(repr, allowed))}.')
        if self.mode == 'whole':
            for field in ('border', 'average'):
                if getattr(self, field) != getattr(type(self), field):
                    raise ValueError(
                        f'test_cfg.{field}={getattr(self, field)!r} says how '
                        "windows are treated, but test_cfg.mode is 'whole'.")
            return
        for field in ('crop_size', 'stride'):
            if getattr(self, field) is None:
                raise ValueError("test_cfg.mode='slide' needs "
                                 f'test_cfg.{field}.')
            pair = as_pair(getattr(self, field), field)
            object.__setattr__(self, field, pair)
        # It refuses what cannot cover an image, before one is there.
        sliding_windows(*self.crop_size, self.crop_size, self.stride)

    @classmethod
    def from_config(cls, test_cfg: Optional[Mapping[str, Any]]
                    ) -> 'DenseTestSettings':
        """Read a segmenter's ``test_cfg``; fields of heads are left aside.

        Args:
            test_cfg (Mapping, optional): None: all defaults.

        Returns:
            DenseTestSettings: Checked.
        """
        test_cfg = test_cfg or {}
        return cls(**{
            field: test_cfg[field]
            for field in cls.__dataclass_fields__ if field in test_cfg
        })


def predict_dense(models: Union[nn.Module, Sequence[nn.Module]],
                  inputs: Tensor,
                  data_samples: Optional[list] = None) -> list:
    """Predict the class of every pixel, by one model or by several.

    For one model and a ``test_cfg`` that mmseg knows, the result equals that
    of the model's own ``predict``. Several models are averaged in their
    probabilities, as CPS's ensemble of both networks; each follows its own
    ``test_cfg``, the first one's ``align_corners`` resizes the mean. Call it
    under ``torch.no_grad()``.

    Unlike mmseg, logits always get the size of the padded batch, whatever
    the samples' ``pad_shape``, and the metainfo stays as it is.

    Args:
        models (nn.Module or Sequence[nn.Module]): mmseg's EncoderDecoder, or
            several of the same classes.
        inputs (Tensor): Preprocessed images (N, C, H, W).
        data_samples (list[SegDataSample], optional): N samples that get the
            results. Defaults to None: new ones, at the size of ``inputs``.

    Returns:
        list[SegDataSample]: With ``pred_sem_seg`` and ``seg_logits``, at the
        images' original size, without padding and flip. Where probabilities
        were averaged, ``seg_logits`` is their logarithm, so that its softmax
        gives them. (With one output channel, mmseg and this function store
        the sigmoid.)

    Raises:
        TypeError: If a model has no ``encode_decode``.
        ValueError: If there is no model, their numbers of classes differ or
            a ``test_cfg`` is wrong.
    """
    models = [models] if isinstance(models, nn.Module) else list(models)
    if not models:
        raise ValueError('predict_dense needs at least one model.')
    for model in models:
        if not hasattr(model, 'encode_decode'):
            raise TypeError(
                f'{type(model).__name__} has no encode_decode; models must '
                'be segmenters such as EncoderDecoder of mmseg.')
    metas = None
    if data_samples is not None:
        metas = [sample.metainfo for sample in data_samples]
    scores, is_probability = _scores(models, inputs, metas)
    if is_probability and scores.shape[1] == 1:
        # mmseg applies the sigmoid itself and compares with a threshold.
        scores, is_probability = scores.logit(eps=1e-6), False
    predictions = models[0].postprocess_result(scores, data_samples)
    if is_probability:
        for sample in predictions:
            logits = sample.seg_logits
            logits.data = logits.data.clamp(min=TINY).log()
    return predictions


def _scores(models: List[nn.Module], inputs: Tensor,
            metas: Optional[List[dict]]) -> Tuple[Tensor, bool]:
    """Return scores (N, K, H, W) and whether they are probabilities."""
    if len(models) == 1:
        return _model_scores(models[0], inputs, metas)
    total = 0.
    for model in models:
        scores, is_probability = _model_scores(model, inputs, metas)
        if not is_probability:
            scores = probabilities(scores)
        if isinstance(total, Tensor) and total.shape != scores.shape:
            raise ValueError(
                'Models whose predictions are averaged must have the same '
                f'classes, but they give {total.shape[1]} and '
                f'{scores.shape[1]} channels.')
        total = total + scores
    return total / len(models), True


def _model_scores(model: nn.Module, inputs: Tensor,
                  metas: Optional[List[dict]]) -> Tuple[Tensor, bool]:
    settings = DenseTestSettings.from_config(getattr(model, 'test_cfg', None))
    if settings.mode == 'whole':
        return model.encode_decode(inputs, _whole_metas(metas, inputs)), False
    scores = slide_logits(model, inputs, settings.crop_size, settings.stride,
                          settings.border, settings.average, metas)
    return scores, settings.average == 'softmax'


def _whole_metas(metas: Optional[List[dict]], inputs: Tensor) -> List[dict]:
    """Return metainfo that makes a head resize to the padded size.

    Heads take ``pad_shape``, unless ``img_shape`` is a torch.Size, which it
    also is after padding in training mode.
    """
    shape = inputs.shape[2:]
    if metas is None:
        return window_metas(None, len(inputs), shape)
    size = tuple(shape)
    return [{
        **meta, 'img_shape': tuple(meta.get('img_shape', size)),
        'pad_shape': size
    } for meta in metas]
