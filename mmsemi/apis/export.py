# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Teacher or student as a plain mmdet model."""
import copy
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import mmdet
import mmengine
import numpy as np
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.datasets import CocoDataset
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from mmsemi.methods import load_segmentor_config
from mmsemi.registry import DATASETS
from mmsemi.version import __version__
from .checkpoints import load_checkpoint_file
from .configs import ConfigLike, config_name, load_config
from .inference import dataset_meta, init_model, plain
from .training import set_predictor


class ExportedModel(NamedTuple):
    """Files of an exported model."""
    config: Path
    checkpoint: Path


def export_model(config: ConfigLike,
                 checkpoint: Union[str, Path],
                 out_dir: Union[str, Path],
                 which: str = 'teacher',
                 verify: bool = True) -> ExportedModel:
    """Write teacher or student as a plain mmdet config and checkpoint.

    ``mmdet.apis.init_detector`` and mmdet's ``tools/test.py`` take both
    files, without mmsemi.

    Args:
        config (str, Path or Config): Config of the training.
        checkpoint (str or Path): Checkpoint of the training.
        out_dir (str or Path): Folder of the two files,
            ``{config name}_{which}.py`` and ``.pth``.
        which (str): 'teacher' or 'student'. Defaults to 'teacher'.
        verify (bool): Whether to load the files with mmdet and compare the
            predictions on a random image. Defaults to True.

    Returns:
        ExportedModel: The two paths.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If the checkpoint is not of a teacher-student training,
            or the config needs mmsemi for more than the training.
        RuntimeError: If the exported model predicts something else.
    """
    cfg = load_config(config)
    set_predictor(cfg, which)
    name = f'{config_name(config)}_{which}'
    loaded = load_checkpoint_file(checkpoint)
    weights = part_of_checkpoint(loaded['state_dict'], which, str(checkpoint))
    model = init_model(cfg, checkpoint, which)
    meta = dataset_meta(cfg, loaded)
    plain_cfg = plain_config(cfg, meta)

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    files = ExportedModel(out_dir / f'{name}.py', out_dir / f'{name}.pth')
    plain_cfg.dump(files.config)
    torch.save(
        dict(
            meta=dict(
                dataset_meta=meta,
                mmdet_version=mmdet.__version__,
                mmengine_version=mmengine.__version__,
                mmsemi_version=__version__,
                exported=which,
                iter=int((loaded.get('meta') or {}).get('iter', 0))),
            state_dict=weights), files.checkpoint)
    if verify:
        verify_export(model, files)
    return files


def part_of_checkpoint(state_dict: dict, which: str,
                       source: str = 'The checkpoint') -> dict:
    """Take teacher or student out of a state dict.

    Args:
        state_dict (dict): Weights of a teacher-student model.
        which (str): 'teacher' or 'student'.
        source (str): Where it is from, for the message.

    Returns:
        dict: Weights with the names of the plain model.

    Raises:
        ValueError: If there is no such part.
    """
    prefix = f'{which}.'
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
    """Make a mmdet config of the segmenter in a teacher-student config.

    Args:
        cfg (Config): The teacher-student config.
        meta (dict): Classes and palette of the data.

    Returns:
        Config: Model, test data, metrics and loops; no training.

    Raises:
        ValueError: If ``default_scope`` is not mmdet, or if the model or the
            test data need a type of mmsemi.
    """
    scope = cfg.get('default_scope')
    if scope != 'mmdet':
        raise ValueError(f'default_scope={scope!r}: only mmdet models can be '
                         "exported, with default_scope='mmdet'.")
    model = copy.deepcopy(load_segmentor_config(cfg.model.segmentor))
    preprocessor = cfg.model.get('data_preprocessor')
    if preprocessor is not None:
        model.data_preprocessor = preprocessor.get('data_preprocessor',
                                                   preprocessor)
    # Weights come from the exported checkpoint, nothing is to be downloaded.
    model.pop('pretrained', None)
    if 'backbone' in model:
        model.backbone.init_cfg = None

    loader = copy.deepcopy(cfg.test_dataloader)
    _plain_dataset(loader.dataset, meta, 'test_dataloader.dataset')
    evaluator = copy.deepcopy(cfg.get('test_evaluator'))
    parts = dict(
        default_scope='mmdet',
        model=model,
        test_pipeline=_pipeline_of(loader.dataset),
        test_dataloader=loader,
        test_evaluator=evaluator,
        test_cfg=dict(type='TestLoop'),
        val_dataloader=copy.deepcopy(loader),
        val_evaluator=copy.deepcopy(evaluator),
        val_cfg=dict(type='ValLoop'),
        default_hooks=dict(visualization=dict(type='DetVisualizationHook')),
        env_cfg=cfg.get('env_cfg') or dict(dist_cfg=dict(backend='nccl')),
        visualizer=dict(
            type='DetLocalVisualizer',
            vis_backends=[dict(type='LocalVisBackend')],
            name='visualizer'),
        log_level=cfg.get('log_level', 'INFO'))
    parts = Config(parts).to_dict()
    for key in ('model', 'test_pipeline', 'test_dataloader', 'test_evaluator',
                'val_dataloader', 'val_evaluator'):
        parts[key] = _without_scopes(parts[key], key)
    return Config(parts)


def verify_export(model: torch.nn.Module, files: ExportedModel) -> None:
    """Compare the predictions of an exported model, on the CPU.

    Args:
        model (nn.Module): The teacher-student model, from
            :func:`init_model`; its weights are frozen.
        files (ExportedModel): The exported files.

    Raises:
        RuntimeError: If anything differs in a single bit.
    """
    # A side that the strides of common models divide.
    image = np.random.RandomState(0).randint(0, 256, (256, 320, 3), np.uint8)
    init_default_scope('mmdet')
    exported = init_detector(
        str(files.config), str(files.checkpoint), device='cpu')
    # torch multiplies weights that need a gradient in another order, even
    # where none is computed, and the teacher's never need one.
    model.requires_grad_(False)
    exported.requires_grad_(False)
    expected = inference_detector(model, image)
    difference = compare_predictions(expected,
                                     inference_detector(exported, image))
    if difference:
        raise RuntimeError(
            f'The exported model {files.checkpoint} does not predict the '
            f'same as the original: {difference}.')


def compare_predictions(first: DetDataSample,
                        second: DetDataSample) -> Optional[str]:
    """Say in which field two predictions differ.

    Args:
        first (DetDataSample): A prediction.
        second (DetDataSample): Another one on the same image.

    Returns:
        str or None: None if they are equal bit for bit.
    """
    first, second = first.pred_instances, second.pred_instances
    if set(first.keys()) != set(second.keys()):
        return f'fields {sorted(first.keys())} and {sorted(second.keys())}'
    for key in first.keys():
        if not torch.equal(
                torch.as_tensor(first[key]), torch.as_tensor(second[key])):
            return f'pred_instances.{key}'
    return None


def _plain_dataset(dataset: ConfigDict, meta: dict, where: str) -> None:
    """Put mmdet's class in place of one that mmsemi derives from it."""
    if 'dataset' in dataset:
        _plain_dataset(dataset.dataset, meta, f'{where}.dataset')
        return
    kind = str(dataset.type)
    if kind.startswith('mmsemi.'):
        cls = DATASETS.get(kind)
        if cls is None or not issubclass(cls, CocoDataset):
            raise ValueError(
                f'{where}.type={kind!r} is no COCO data set: mmdet cannot '
                'read it. Test on an mmdet data set, or export with '
                '--cfg-options test_dataloader.dataset.type=CocoDataset.')
        dataset.type = 'CocoDataset'
        dataset.metainfo = plain(
            {key: meta[key] for key in ('classes', 'palette') if key in meta})


def _pipeline_of(dataset: ConfigDict) -> list:
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return copy.deepcopy(dataset.get('pipeline', []))


def _without_scopes(node: Any, where: str) -> Any:
    """Write types as plain mmdet configs do, and refuse mmsemi's.

    Upstream's ``DetInferencer`` looks for transforms by their bare name.
    """
    if isinstance(node, (list, tuple)):
        return type(node)(
            _without_scopes(child, f'{where}[{i}]')
            for i, child in enumerate(node))
    if not isinstance(node, dict):
        return node
    if node.get('type') == 'mmsemi.PackDetInputs':
        from mmsemi.datasets.transforms import PackDetInputs
        node = dict(
            type='PackDetInputs',
            meta_keys=tuple(
                node.get('meta_keys',
                         PackDetInputs().meta_keys)))
    found = {}
    for key, value in node.items():
        if key == '_scope_' and value == 'mmdet':
            continue
        if key == 'type' and isinstance(value, str):
            if value.startswith('mmsemi.'):
                raise ValueError(
                    f'{where}.type={value!r}: mmdet has no such type, so the '
                    'exported model could not run without mmsemi. Replace '
                    'it in the config, for instance with --cfg-options.')
            found[key] = value[6:] if value.startswith('mmdet.') else value
        else:
            found[key] = _without_scopes(value, f'{where}.{key}')
    return found
