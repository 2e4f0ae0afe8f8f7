# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Find what is wrong with a config before a training does."""
import logging
import os
import os.path as osp
import re
import warnings
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from mmengine.config import Config
from mmengine.registry import (DATA_SAMPLERS, DATASETS, MODELS, TRANSFORMS,
                               init_default_scope)
from torch import nn

from mmsemi.datasets import MultiSourceSampler, leaf_datasets, load_coco
from mmsemi.methods import MultiViewModel
from .class_check import check_files, class_problems
from .configs import ConfigLike, load_config
from .data_files import LOADERS, broken_file_named, data_sources, source_files
from .type_check import Finding, check_types, resolve_type

#: Annotations of more bytes are not read a second time.
LARGE_FILE = 50 * 2**20


def check_config(config: ConfigLike,
                 build_model: bool = True,
                 load_data: bool = True) -> List[Finding]:
    """Check a config without training and without any download.

    Args:
        config (str, Path or Config): See :func:`load_config`.
        build_model (bool): Whether to build the model on the CPU, without
            weights. Defaults to True.
        load_data (bool): Whether to load the data sets whose files exist and
            to draw one sample of each training source. Defaults to True.

    Returns:
        list[Finding]: Errors, warnings and notes.

    Raises:
        FileNotFoundError: If the config is missing.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    with _quiet_and_offline():
        findings = _check_scope(cfg) + check_types(cfg)
        model = None
        if build_model and cfg.get('model'):
            model, problems = _build_model(cfg)
            if model is not None:
                # Inside a model, `type` is not always a registered name.
                findings = [
                    f for f in findings if not f.where.startswith('model')
                    or 'is unknown' not in f.message
                ]
            findings += problems
            if cfg.get('default_scope') == 'mmseg' and model is not None:
                findings += _check_prediction(model)
        findings += _check_files(cfg)
        classes: Dict[str, Any] = {}
        for loader in LOADERS:
            if cfg.get(loader) is not None:
                findings += _check_loader(cfg, loader, model, load_data,
                                          classes)
        findings += _check_unlabeled(cfg, model, load_data)
    return _unique(findings)


def _check_scope(cfg: Config) -> List[Finding]:
    scope = cfg.get('default_scope')
    if scope in ('mmdet', 'mmseg'):
        return []
    return [
        Finding(
            'error', 'default_scope',
            f'{scope!r} is not allowed: types without a prefix would '
            "silently be mmcv's. Write 'mmdet' (or 'mmseg'), and mmsemi's "
            "types as 'mmsemi.X'.")
    ]


def _build_model(cfg: Config) -> Tuple[Optional[nn.Module], List[Finding]]:
    try:
        return MODELS.build(cfg.model), []
    except Exception as error:
        return None, [Finding('error', 'model', _text(error))]


def _check_prediction(model: nn.Module) -> List[Finding]:
    """Read ``test_cfg`` of mmseg's segmenters: it fails late or never."""
    from mmseg.models import BaseSegmentor

    from mmsemi.models.dense_prediction import DenseTestSettings
    findings = []
    for name, module in model.named_modules():
        if not isinstance(module, BaseSegmentor):
            continue
        test_cfg = getattr(module, 'test_cfg', None) or {}
        where = 'model.segmentor.test_cfg' if name else 'model.test_cfg'
        try:
            settings = DenseTestSettings.from_config(test_cfg)
        except ValueError as error:
            findings.append(Finding('error', where, str(error)))
            continue
        ignored = [
            f'{field}={test_cfg[field]!r}' for field in ('border', 'average')
            if getattr(settings, field) != getattr(DenseTestSettings, field)
        ]
        if ignored and not name:
            findings.append(
                Finding(
                    'warning', where,
                    f'{" and ".join(ignored)} has no effect: mmseg ignores '
                    'it, only the models of mmsemi read it.'))
    return findings


def _check_files(cfg: Config) -> List[Finding]:
    """Find weights that are missing or to be downloaded."""
    teacher = cfg.get('model', {}).get('teacher') or {}
    findings = []
    for where, path in (('load_from', cfg.get('load_from')),
                        ('model.teacher.checkpoint',
                         teacher.get('checkpoint'))):
        if not path:
            continue
        if '://' in path:
            findings.append(
                Finding('note', where, f'{path} is fetched at the start.'))
        elif not osp.isfile(osp.expanduser(path)):
            findings.append(
                Finding('error', where, f'There is no file {path}.'))
    return findings


def _check_loader(cfg: Config, field: str, model: Optional[nn.Module],
                  load_data: bool, classes: Dict[str, Any]) -> List[Finding]:
    loader = cfg[field]
    findings = []
    sources = list(
        data_sources(loader.get('dataset', {}), f'{field}.dataset'))
    pipelines = []
    for where, source in sources:
        pipeline, problem = _build_pipeline(source, f'{where}.pipeline')
        pipelines.append(pipeline)
        findings += problem
    if field == 'train_dataloader':
        findings += _check_views(cfg, sources, pipelines, model)
        findings += _check_sampler(loader, len(sources))
    missing = _check_missing(sources, field)
    # Some data sets look for files even when they are to read nothing.
    findings += _check_classes(loader, field, model, classes, bool(missing))
    if not load_data or any(f.level == 'error' for f in findings):
        return findings
    return findings + (
        missing
        or _check_data(cfg, loader['dataset'], f'{field}.dataset', model))


def _check_missing(sources: List[Tuple[str, Mapping]],
                   field: str) -> List[Finding]:
    """Find files and folders that data sets read and that are not there."""
    files = {path for _, source in sources for path in source_files(source)}
    missing = sorted(path for path in files if not osp.exists(path))
    if not missing:
        return []
    # With none of the files here, the data are simply elsewhere.
    level = 'note' if len(missing) == len(files) else 'error'
    return [
        Finding(level, field,
                f'not loaded, because there is no {", ".join(missing)}')
    ]


def _check_unlabeled(cfg: Config, model: Optional[nn.Module],
                     load_data: bool) -> List[Finding]:
    """Check the images that rounds of self-training label."""
    field = 'train_cfg.unlabeled_dataset'
    dataset = (cfg.get('train_cfg') or {}).get('unlabeled_dataset')
    if not isinstance(dataset, Mapping):
        return []
    sources = list(data_sources(dataset, field))
    findings = []
    for where, source in sources:
        findings += _build_pipeline(source, f'{where}.pipeline')[1]
    if findings or not load_data:
        return findings
    return _check_missing(sources, field) or _check_data(
        cfg, dataset, field, model)


def _check_views(cfg: Config, sources: List[Tuple[str, Mapping]],
                 pipelines: list, model: Optional[nn.Module]) -> List[Finding]:
    """Check that all sources agree on their views and all views exist."""
    cls = resolve_type(str(cfg.get('model', {}).get('type')), [MODELS])
    if not (isinstance(cls, type) and issubclass(cls, MultiViewModel)):
        return []
    views, fields, findings = set(), {}, []
    for (where, _), pipeline in zip(sources, pipelines):
        if pipeline is None:
            return []
        last = pipeline[-1] if pipeline else None
        if not hasattr(last, 'branch_pipelines'):
            findings.append(
                Finding(
                    'error', f'{where}.pipeline',
                    'does not end with mmsemi.MultiBranch, which makes the '
                    f'views for {cfg.model.type}.'))
            continue
        views |= set(last.branch_pipelines)
        fields.setdefault(tuple(sorted(last.branch_field)), where)
    if len(fields) > 1:
        findings.append(
            Finding(
                'error', 'train_dataloader.dataset',
                'the sources differ in branch_field of MultiBranch ('
                f'{"; ".join(map(str, fields))}), so their samples cannot '
                'form a batch. List the views of all sources in each.'))
    # Some models need other views than their class, by their arguments.
    needed = getattr(cls if model is None else model, 'views', ())
    missing = [view for view in needed if view not in views]
    if missing and not findings:
        findings.append(
            Finding(
                'error', 'train_dataloader.dataset',
                f'no source makes the views {missing}; there are '
                f'{sorted(views)}.'))
    return findings


def _check_sampler(loader: Mapping, num_sources: int) -> List[Finding]:
    """Check ratio and batch size without data."""
    where = 'train_dataloader.sampler'
    sampler = loader.get('sampler') or {}
    if resolve_type(str(sampler.get('type')),
                    [DATA_SAMPLERS]) is not MultiSourceSampler:
        return []
    options = {k: v for k, v in sampler.items() if k != 'type'}
    options['group_by_aspect_ratio'] = False
    options.setdefault('seed', 0)
    try:
        MultiSourceSampler(_OneItemEach(num_sources), **options)
    except (TypeError, ValueError) as error:
        return [Finding('error', where, str(error))]
    if loader.get('batch_size') != sampler.get('batch_size'):
        return [
            Finding(
                'error', where,
                f'batch_size={sampler.get("batch_size")}, but train_'
                f'dataloader.batch_size={loader.get("batch_size")}: set both '
                'to the same number.')
        ]
    collate = loader.get('collate_fn') or {}
    if str(collate.get('type')).split('.')[-1] != 'pseudo_collate':
        return [
            Finding(
                'error', 'train_dataloader.collate_fn',
                "views need collate_fn=dict(type='pseudo_collate').")
        ]
    return []


class _OneItemEach:
    """Stands in for a dataset, to check a sampler without data."""

    def __init__(self, num_sources: int) -> None:
        self.datasets = [[None]] * num_sources
        self.cumulative_sizes = list(range(1, num_sources + 1))

    def __len__(self) -> int:
        return len(self.datasets)


def _check_classes(loader: Mapping, field: str, model: Optional[nn.Module],
                   seen: Dict[str, Any], missing: bool) -> List[Finding]:
    """Compare the class lists of data sets and model, without any file.

    ``seen`` collects the lists of the loaders, by the field that named them.
    """
    where = f'{field}.dataset'
    try:
        dataset = DATASETS.build(_lazy(loader['dataset']))
    except (AssertionError, FileNotFoundError) as error:
        return [] if missing else [Finding('error', where, _text(error))]
    except Exception as error:
        return [Finding('error', where, _text(error))]
    findings = [
        Finding('error', where, problem)
        for problem in class_problems(dataset, model)
    ]
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    for other, names in seen.items():
        if classes and tuple(names) != tuple(classes):
            findings.append(
                Finding(
                    'error', where,
                    f'its classes differ from those of {other}.dataset: '
                    f'{tuple(classes)} and {tuple(names)}.'))
    if classes:
        seen.setdefault(field, classes)
    return findings


def _lazy(dataset: Mapping) -> dict:
    """Return the config of a dataset that reads nothing."""
    lazy = dict(dataset, lazy_init=True)
    if 'datasets' in dataset:
        lazy['datasets'] = [_lazy(child) for child in dataset['datasets']]
    elif isinstance(dataset.get('dataset'), Mapping):
        lazy['dataset'] = _lazy(dataset['dataset'])
    else:
        lazy['pipeline'] = []
    return lazy


def _check_category_order(dataset: Any, where: str) -> List[Finding]:
    """Find class lists in another order than the annotations' categories.

    mmdet numbers labels in the order of the file.
    """
    findings = []
    for source in leaf_datasets(dataset):
        path = getattr(source, 'ann_file', '')
        classes = tuple(source.metainfo.get('classes') or ())
        if not classes or not hasattr(source, 'cat_ids') or not osp.isfile(
                path) or osp.getsize(path) > LARGE_FILE:
            continue
        names = [
            category['name'] for category in load_coco(path)['categories']
            if category['name'] in classes
        ]
        if tuple(names) != classes:
            findings.append(
                Finding(
                    'error', where,
                    f'metainfo lists the classes {classes}, but {path} has '
                    f'them in the order {tuple(names)}, which is how mmdet '
                    'numbers the labels. Use the order of the file.'))
    return findings


def _check_data(cfg: Config, config: Mapping, where: str,
                model: Optional[nn.Module]) -> List[Finding]:
    """Load a data set and draw a sample of each source."""
    try:
        # What is wrong with mmseg's files has a name here, not when loaded.
        check_files(DATASETS.build(_lazy(config)))
        with broken_file_named(cfg):
            dataset = DATASETS.build(config)
            getattr(dataset, 'full_init', lambda: None)()
    except Exception as error:
        return [Finding('error', where, _text(error))]
    findings = [
        Finding('error', where, problem)
        for problem in class_problems(dataset, model)
    ]
    findings += _check_category_order(dataset, where)
    if not len(dataset):
        return [Finding('error', where, 'is empty.')]
    if findings:
        return findings
    sizes = [0, *getattr(dataset, 'cumulative_sizes', [len(dataset)])]
    for number, start in enumerate(sizes[:-1]):
        try:
            dataset[start]
        except Exception as error:
            findings.append(
                Finding('error', where,
                        f'source {number} gives no sample: {_text(error)}'))
    counts = [end - start for start, end in zip(sizes, sizes[1:])]
    findings.append(
        Finding('note', where, ' + '.join(map(str, counts)) + ' images'))
    return findings


def _build_pipeline(source: Mapping,
                    where: str) -> Tuple[Optional[list], List[Finding]]:
    built = []
    for i, transform in enumerate(source.get('pipeline') or []):
        if not isinstance(transform, Mapping):
            built.append(transform)
            continue
        try:
            built.append(TRANSFORMS.build(dict(transform)))
        except Exception as error:
            return None, [Finding('error', f'{where}[{i}]', _text(error))]
    return built, []


def _text(error: Exception) -> str:
    """Return the message of an error, whatever wrapped it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args \
        else str(error)
    return re.sub(r'\s+', ' ', text) or type(error).__name__


def _unique(findings: List[Finding]) -> List[Finding]:
    """Drop what is the same in training, validation and test data."""
    found = {}
    for finding in findings:
        key = (finding.level, finding.message)
        found.setdefault(key, finding)
    return list(found.values())


@contextmanager
def _quiet_and_offline() -> Iterator[None]:
    """Silence warnings, and keep models from fetching weights."""
    offline = dict(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1')
    before = {key: os.environ.get(key) for key in offline}
    level = logging.root.manager.disable
    os.environ.update(offline)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value
