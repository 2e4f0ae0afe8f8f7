# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What differs between plain models of mmdet and of mmseg."""
import inspect
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.structures import BaseDataElement
from torch import nn

from mmsemi.compat import is_installed


class PlainLibrary:
    """A library whose plain configs and checkpoints are written."""

    name = ''
    """Import name and scope."""
    dataset = ''
    """The data set that mmsemi's own are derived from."""
    readable = ''
    """What these data sets are called in messages."""
    packing = ''
    """The transform that mmsemi's packing is derived from."""
    visualization_hook = ''
    visualizer = ''

    def version(self) -> str:
        """Return the installed version."""
        return __import__(self.name).__version__

    def dataset_class(self) -> type:
        """Return :attr:`dataset` as a class."""
        raise NotImplementedError

    def init_model(self, config: Path, checkpoint: Path) -> nn.Module:
        """Load files as a user of the library does, on the CPU."""
        raise NotImplementedError

    def predict(self, model: nn.Module, image: np.ndarray) -> BaseDataElement:
        """Predict on an image (H, W, 3) as a user of the library does."""
        raise NotImplementedError

    def adapt_model(self, model: ConfigDict) -> None:
        """Take out of a model's config what only mmsemi reads, in place.

        Raises:
            ValueError: If it changes predictions.
        """

    def adapt_dataset(self, dataset: ConfigDict, cls: type) -> None:
        """Write down what a class of mmsemi adds to its base, in place."""

    def adapt_metric(self, metric: dict) -> dict:
        """Return the library's metric in place of one of mmsemi's."""
        return metric


class MMDet(PlainLibrary):
    """Instances."""

    name = 'mmdet'
    dataset = 'CocoDataset'
    readable = 'COCO data set'
    packing = 'PackDetInputs'
    visualization_hook = 'DetVisualizationHook'
    visualizer = 'DetLocalVisualizer'

    def dataset_class(self) -> type:
        """Return :attr:`dataset` as a class."""
        from mmdet.datasets import CocoDataset
        return CocoDataset

    def init_model(self, config: Path, checkpoint: Path) -> nn.Module:
        """Load files as a user of the library does, on the CPU."""
        from mmdet.apis import init_detector
        return init_detector(str(config), str(checkpoint), device='cpu')

    def predict(self, model: nn.Module, image: np.ndarray) -> BaseDataElement:
        """Predict on an image (H, W, 3) as a user of the library does."""
        from mmdet.apis import inference_detector
        return inference_detector(model, image)


class MMSeg(PlainLibrary):
    """Classes of all pixels."""

    name = 'mmseg'
    dataset = 'BaseSegDataset'
    readable = 'mmseg data set'
    packing = 'PackSegInputs'
    visualization_hook = 'SegVisualizationHook'
    visualizer = 'SegLocalVisualizer'

    #: Arguments that classes derived from BaseSegDataset give new defaults.
    DATASET_DEFAULTS = ('img_suffix', 'seg_map_suffix', 'reduce_zero_label')

    def dataset_class(self) -> type:
        """Return :attr:`dataset` as a class."""
        from mmseg.datasets import BaseSegDataset
        return BaseSegDataset

    def init_model(self, config: Path, checkpoint: Path) -> nn.Module:
        """Load files as a user of the library does, on the CPU."""
        from mmseg.apis import init_model
        return init_model(str(config), str(checkpoint), device='cpu')

    def predict(self, model: nn.Module, image: np.ndarray) -> BaseDataElement:
        """Predict on an image (H, W, 3) as a user of the library does."""
        from mmseg.apis import inference_model
        return inference_model(model, image)

    def adapt_model(self, model: ConfigDict) -> None:
        """Take out of a model's config what only mmsemi reads, in place.

        Raises:
            ValueError: If ``test_cfg`` averages windows in a way that mmseg
                does not know: it would ignore the field and predict
                something else.
        """
        from mmsemi.models.dense_prediction import DenseTestSettings
        test_cfg = model.get('test_cfg')
        settings = DenseTestSettings.from_config(test_cfg)
        for field in ('border', 'average'):
            value, usual = (getattr(s, field)
                            for s in (settings, DenseTestSettings))
            if value != usual:
                raise ValueError(
                    f'test_cfg.{field}={value!r}: mmseg ignores this field, '
                    f'so that the exported model would predict with {usual!r} '
                    'and other results. Export with --cfg-options '
                    f'model.segmentor.test_cfg.{field}={usual}, and measure '
                    'with it too.')
            if test_cfg:
                test_cfg.pop(field, None)
        if settings.mode == 'slide':
            # mmseg takes pairs only.
            test_cfg.update(
                crop_size=settings.crop_size, stride=settings.stride)
        _drop_losses(model)

    def adapt_dataset(self, dataset: ConfigDict, cls: type) -> None:
        """Write down what a class of mmsemi adds to its base, in place."""
        parameters = inspect.signature(cls.__init__).parameters
        for field in self.DATASET_DEFAULTS:
            if field in parameters:
                dataset.setdefault(field, parameters[field].default)

    def adapt_metric(self, metric: dict) -> dict:
        """Return the library's metric in place of one of mmsemi's."""
        if metric.get('type') != 'mmsemi.SemanticMetric':
            return metric
        known = ('ignore_index', 'output_dir', 'format_only', 'prefix')
        return dict(
            type='IoUMetric',
            iou_metrics=['mIoU'],
            **{key: metric[key]
               for key in known if key in metric})


def _drop_losses(node: Any) -> None:
    """Let heads keep their default loss where it is one of mmsemi's.

    No loss has weights, and a model that only predicts needs none.
    """
    if isinstance(node, dict):
        losses = node.get('loss_decode')
        losses = losses if isinstance(losses, (list, tuple)) else [losses]
        if any(
                str((loss or {}).get('type')).startswith('mmsemi.')
                for loss in losses):
            node.pop('loss_decode')
        node = tuple(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            _drop_losses(child)


LIBRARIES: Dict[str, PlainLibrary] = dict(mmdet=MMDet(), mmseg=MMSeg())


def library_of(cfg: Config) -> PlainLibrary:
    """Return the library of a config's model.

    Args:
        cfg (Config): The config.

    Returns:
        PlainLibrary: By ``default_scope``.

    Raises:
        ValueError: If ``default_scope`` is another.
    """
    scope = cfg.get('default_scope')
    if scope not in LIBRARIES:
        raise ValueError(
            f'default_scope={scope!r}: only models of mmdet and mmseg can be '
            f'exported, with {_choices()}.')
    if not is_installed(scope):
        raise ValueError(f'default_scope={scope!r}, but {scope} is not '
                         'installed.')
    return LIBRARIES[scope]


def _choices() -> str:
    return ' or '.join(f'default_scope={name!r}' for name in LIBRARIES)


def packing_meta_keys(library: PlainLibrary) -> Tuple[str, ...]:
    """Return the meta keys that mmsemi's packing keeps by default."""
    from mmsemi.datasets import transforms
    return tuple(getattr(transforms, library.packing)().meta_keys)
