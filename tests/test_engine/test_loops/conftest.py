# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.dataset import base_dataset


@pytest.fixture(scope='session')
def tiny_rounds():
    """module: ``tiny_rounds.py`` of the folder above."""
    path = Path(__file__).parents[1] / 'tiny_rounds.py'
    spec = importlib.util.spec_from_file_location('tiny_rounds', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def boxes_root(tiny_rounds, tmp_path_factory):
    """str: Six labelled images of 16 x 16, nine unlabelled ones, four val."""
    return tiny_rounds.make_data(tmp_path_factory.mktemp('boxes'))


@pytest.fixture(autouse=True)
def fast_mmengine(monkeypatch):
    """Format no config for every checkpoint, collect no garbage."""
    monkeypatch.setattr(base_dataset, 'gc', SimpleNamespace(collect=int))
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: ''))
