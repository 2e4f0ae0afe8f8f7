# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""A trained part of a model as a plain model of mmdet or mmseg."""
import copy
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import mmengine
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from mmsemi.methods import MultiViewModel, load_segmentor_config
from mmsemi.registry import DATASETS
from mmsemi.version import __version__
from .checkpoints import load_checkpoint_file
from .configs import ConfigLike, config_name, load_config
from .export_libraries import PlainLibrary, library_of, packing_meta_keys
from .inference import dataset_meta, init_model, plain
from .predictors import weight_prefix


class ExportedModel(NamedTuple):
    """Files of an exported model, and which part of the training it is."""
    config: Path
    checkpoint: Path
    which: str


def export_model(config: ConfigLike,
                 checkpoint: Union[str, Path],
                 out_dir: Union[str, Path],
                 which: Optional[str] = None,
                 verify: bool = True) -> ExportedModel:
    """Write a part of a trained model as a plain config and checkpoint.

    They need no mmsemi: ``mmdet.apis.init_detector`` or
    ``mmseg.apis.init_model`` take them, and the library's ``tools/test.py``.

    Args:
        config (str, Path or Config): Config of the training.
        checkpoint (str or Path): Checkpoint of the training.
        out_dir (str or Path): Folder of the two files,
            ``{config name}_{which}.py`` and ``.pth``.
        which (str, optional): 'teacher', 'student', 'network_0', ..., as the
            model has it. Defaults to None: ``model.predict_on`` of the
            config, for most methods 'teacher'.
        verify (bool): Whether to load the files with the library and compare
            the predictions on a random image. Defaults to True.

    Returns:
        ExportedModel: The two paths and the part's name.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If there is no such part, or the config needs mmsemi for
            more than the training.
        RuntimeError: If the exported model predicts something else.
    """
    cfg = load_config(config)
    library = library_of(cfg)
    model = init_model(cfg, checkpoint, which)
    if not isinstance(model, MultiViewModel):
        raise ValueError(f"The config's model is a plain {cfg.model.type}, "
                         'which needs no export.')
    which = model.predict_on
    if which == 'mean':
        names = ', '.join(n for n in model.predictors if n != 'mean')
        raise ValueError("model='mean' is several networks, and a plain model "
                         f'is one. Choose one of {names}.')
    loaded = load_checkpoint_file(checkpoint)
    weights = part_of_checkpoint(loaded['state_dict'], which, str(checkpoint))
    meta = dataset_meta(cfg, loaded)
    plain_cfg = plain_config(cfg, meta)

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    name = f'{config_name(config)}_{which}'
    files = ExportedModel(out_dir / f'{name}.py', out_dir / f'{name}.pth',
                          which)
    plain_cfg.dump(files.config)
    versions = {
        f'{library.name}_version': library.version(),
        'mmengine_version': mmengine.__version__,
        'mmsemi_version': __version__
    }
    torch.save(
        dict(
            meta=dict(
                dataset_meta=meta,
                exported=which,
                iter=int((loaded.get('meta') or {}).get('iter', 0)),
                **versions),
            state_dict=weights), files.checkpoint)
    if verify:
        verify_export(model, files)
    return files


def part_of_checkpoint(state_dict: dict, which: str,
                       source: str = 'The checkpoint') -> dict:
    """Take one model out of a state dict.

    Args:
        state_dict (dict): Weights of several models.
        which (str): 'teacher', 'student', 'network_0', ...
        source (str): Where it is from, for the message.

    Returns:
        dict: Weights with the names of the plain model.

    Raises:
        ValueError: If there is no such part.
    """
    prefix = weight_prefix(which)
    part = {
        key[len(prefix):]: value
        for key, value in state_dict.items() if key.startswith(prefix)
    }
    if not part:
        raise ValueError(
            f'{source} holds no {which}: none of its {len(state_dict)} '
            f'weights starts with {prefix!r} (the first is '
            f'{next(iter(state_dict))!r}). If it is of a plain segmenter, it '
            'needs no export.')
    return part


def plain_config(cfg: Config, meta: dict) -> Config:
    """Make a config of the segmenter inside a semi-supervised config.

    Args:
        cfg (Config): The semi-supervised config.
        meta (dict): Classes and palette of the data.

    Returns:
        Config: Model, test data, metrics and loops; no training. In place of
        ``mmsemi.SemanticMetric`` stands mmseg's IoUMetric.

    Raises:
        ValueError: If ``default_scope`` is neither mmdet nor mmseg, or if
            the model or the test data need mmsemi.
    """
    library = library_of(cfg)
    model = copy.deepcopy(load_segmentor_config(cfg.model.segmentor))
    preprocessor = cfg.model.get('data_preprocessor')
    if preprocessor is not None:
        model.data_preprocessor = preprocessor.get('data_preprocessor',
                                                   preprocessor)
    # Weights come from the exported checkpoint, nothing is to be downloaded.
    model.pop('pretrained', None)
    if 'backbone' in model:
        model.backbone.init_cfg = None
    library.adapt_model(model)

    loader = copy.deepcopy(cfg.test_dataloader)
    _plain_dataset(loader.dataset, meta, library, 'test_dataloader.dataset')
    evaluator = copy.deepcopy(cfg.get('test_evaluator'))
    if isinstance(evaluator, (list, tuple)):
        evaluator = [library.adapt_metric(metric) for metric in evaluator]
    elif evaluator is not None:
        evaluator = library.adapt_metric(evaluator)
    parts = dict(
        default_scope=library.name,
        model=model,
        test_pipeline=_pipeline_of(loader.dataset),
        test_dataloader=loader,
        test_evaluator=evaluator,
        test_cfg=dict(type='TestLoop'),
        val_dataloader=copy.deepcopy(loader),
        val_evaluator=copy.deepcopy(evaluator),
        val_cfg=dict(type='ValLoop'),
        default_hooks=dict(
            visualization=dict(type=library.visualization_hook)),
        env_cfg=cfg.get('env_cfg') or dict(dist_cfg=dict(backend='nccl')),
        visualizer=dict(
            type=library.visualizer,
            vis_backends=[dict(type='LocalVisBackend')],
            name='visualizer'),
        log_level=cfg.get('log_level', 'INFO'))
    parts = Config(parts).to_dict()
    for key in ('model', 'test_pipeline', 'test_dataloader', 'test_evaluator',
                'val_dataloader', 'val_evaluator'):
        parts[key] = _without_scopes(parts[key], library, key)
    return Config(parts)


def verify_export(model: nn.Module, files: ExportedModel) -> None:
    """Compare the predictions of an exported model, on the CPU.

    Args:
        model (nn.Module): The trained model, from :func:`init_model`; its
            weights are frozen.
        files (ExportedModel): The exported files.

    Raises:
        RuntimeError: If anything differs in a single bit.
    """
    # A side that the strides of common models divide.
    image = np.random.RandomState(0).randint(0, 256, (256, 320, 3), np.uint8)
    library = library_of(model.cfg)
    init_default_scope(library.name)
    exported = library.init_model(files.config, files.checkpoint)
    # torch multiplies weights that need a gradient in another order, even
    # where none is computed, and the teacher's never need one.
    model.requires_grad_(False)
    exported.requires_grad_(False)
    difference = compare_predictions(
        library.predict(model, image), library.predict(exported, image))
    if difference:
        raise RuntimeError(
            f'The exported model {files.checkpoint} does not predict the '
            f'same as the original: {difference}.')


def compare_predictions(first: BaseDataElement,
                        second: BaseDataElement) -> Optional[str]:
    """Say in which field two predictions differ.

    Args:
        first (BaseDataElement): A prediction of mmdet or mmseg.
        second (BaseDataElement): Another one on the same image.

    Returns:
        str or None: None if they are equal bit for bit.
    """
    for field in ('pred_instances', 'pred_sem_seg', 'seg_logits'):
        a, b = (
            dict(sample.get(field).items()) if field in sample else {}
            for sample in (first, second))
        if set(a) != set(b):
            return f'fields {sorted(a)} and {sorted(b)}'
        for key in a:
            if not torch.equal(
                    torch.as_tensor(a[key]), torch.as_tensor(b[key])):
                return f'{field}.{key}'
    return None


def _plain_dataset(dataset: ConfigDict, meta: dict, library: PlainLibrary,
                   where: str) -> None:
    """Put the library's class in place of one that mmsemi derives from it."""
    children = [('dataset', dataset.dataset)] if 'dataset' in dataset else [
        (f'datasets[{i}]', child)
        for i, child in enumerate(dataset.get('datasets', ()))
    ]
    for key, child in children:
        _plain_dataset(child, meta, library, f'{where}.{key}')
    if children:
        return
    kind = str(dataset.type)
    if kind.startswith('mmsemi.'):
        cls = DATASETS.get(kind)
        if cls is None or not issubclass(cls, library.dataset_class()):
            raise ValueError(
                f'{where}.type={kind!r} is no {library.readable}: '
                f'{library.name} cannot read it. Test on another one, or '
                'export with --cfg-options '
                f'test_dataloader.dataset.type={library.dataset}.')
        dataset.type = library.dataset
        library.adapt_dataset(dataset, cls)
        dataset.metainfo = plain(
            {key: meta[key] for key in ('classes', 'palette') if key in meta})


def _pipeline_of(dataset: ConfigDict) -> list:
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset.datasets[0]
    return copy.deepcopy(dataset.get('pipeline', []))


def _without_scopes(node: Any, library: PlainLibrary, where: str) -> Any:
    """Write types as plain configs do, and refuse mmsemi's.

    Upstream's inferencers look for transforms by their bare name.
    """
    if isinstance(node, (list, tuple)):
        return type(node)(
            _without_scopes(child, library, f'{where}[{i}]')
            for i, child in enumerate(node))
    if not isinstance(node, dict):
        return node
    if node.get('type') == f'mmsemi.{library.packing}':
        node = dict(
            type=library.packing,
            meta_keys=tuple(
                node.get('meta_keys', packing_meta_keys(library))))
    found = {}
    for key, value in node.items():
        if key == '_scope_' and value == library.name:
            continue
        if key == 'type' and isinstance(value, str):
            if value.startswith('mmsemi.'):
                raise ValueError(
                    f'{where}.type={value!r}: {library.name} has no such '
                    'type, so the exported model could not run without '
                    'mmsemi. Replace it in the config, for instance with '
                    '--cfg-options.')
            found[key] = value.removeprefix(f'{library.name}.')
        else:
            found[key] = _without_scopes(value, library, f'{where}.{key}')
    return found
