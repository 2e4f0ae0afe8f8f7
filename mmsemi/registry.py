# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Registries of mmsemi: children of mmengine's root, scope ``mmsemi``.

Types are written ``mmsemi.X`` in configs. ``locations`` name the packages
that are imported when a type is first looked up; nothing else is imported
here, because mmengine hides an error raised while it imports this module.
"""
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import \
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmsemi',
    locations=['mmsemi.models', 'mmsemi.methods'])
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmsemi',
    locations=['mmsemi.datasets'])
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope='mmsemi',
    locations=['mmsemi.datasets.samplers'])
# Pseudo-label stages are transforms too: a pseudo-label pipeline reads like
# a data pipeline.
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmsemi',
    locations=['mmsemi.datasets.transforms', 'mmsemi.pseudo_labels'])
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmsemi',
    locations=['mmsemi.engine.hooks'])
LOOPS = Registry(
    'loop',
    parent=MMENGINE_LOOPS,
    scope='mmsemi',
    locations=['mmsemi.engine.loops'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmsemi',
    locations=['mmsemi.engine.optimizers'])
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='mmsemi',
    locations=['mmsemi.evaluation'])
VISUALIZERS = Registry(
    'visualizer',
    parent=MMENGINE_VISUALIZERS,
    scope='mmsemi',
    locations=['mmsemi.visualization'])
TASK_UTILS = Registry(
    'task util',
    parent=MMENGINE_TASK_UTILS,
    scope='mmsemi',
    locations=['mmsemi.models', 'mmsemi.pseudo_labels'])
