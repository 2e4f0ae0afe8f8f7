# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The Python API: configs by name, training, prediction, export, checks."""
from importlib import import_module
from typing import Any

# Imported when first used: to list configs or to show a tool's help must not
# wait for torch and mmdet.
_MODULES = dict(
    build_runner='training',
    check_config='config_check',
    end_processes='distributed',
    export_model='export',
    get_config='configs',
    init_model='inference',
    list_configs='configs',
    load_config='configs',
    predict_referred='referring',
    prepare_testing='training',
    prepare_training='training',
    run_testing='training',
    run_training='training',
    segment_referred='referring',
    train='training')

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)
