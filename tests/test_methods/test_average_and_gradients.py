# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Known traps of released code: decay, integer buffers, halved gradients."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope

from mmsemi.methods import FixMatch, TeacherSettings

SCRIPT = Path(__file__).with_name('gradients_in_processes.py')


@pytest.fixture(autouse=True)
def mmseg_scope(mmdet_scope):
    init_default_scope('mmseg')


@pytest.mark.parametrize('update, decay', [(0, 0.), (1, .5), (9, .9),
                                           (100, .990099), (248, .995984),
                                           (249, .996), (10000, .996)])
def test_decay_is_that_of_unimatch_v2(update, decay):
    """min(1 - 1 / (t + 1), 0.996), where our first update is t = 1."""
    settings = TeacherSettings(momentum=.004, warm_up_gamma=1.)
    assert 1 - settings.momentum_at(update) == pytest.approx(decay, abs=1e-6)


@ROOT_MODELS.register_module(force=True)
class IndexedBackbone(torch.nn.Module):
    """Positions in a table, as transformers keep them."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 1)
        self.register_buffer('index', torch.arange(732))
        self.register_buffer('scale', torch.ones(2))

    def forward(self, inputs):
        return self.conv(inputs), self.conv(inputs)


def test_integer_buffers_are_copied(dense_segmentor_config):
    """Averaging them in integers moves 718 of 732 in 300 updates."""
    config = dense_segmentor_config()
    config['backbone'] = dict(type='mmengine.IndexedBackbone')
    config.pop('auxiliary_head')
    model = FixMatch(config)
    for _ in range(300):
        model.update_teacher()
    teacher = model.teacher.backbone
    assert torch.equal(teacher.index, torch.arange(732))
    model.student.backbone.index += 5
    model.student.backbone.scale += 1
    model.update_teacher()
    assert torch.equal(teacher.index, torch.arange(5, 737))
    assert teacher.scale.tolist() == pytest.approx([1.004] * 2)


def test_gradients_are_not_divided_twice(dense_segmentor_config,
                                         dense_batch_factory, tmp_path):
    """Of two processes they are the mean of both, as DDP makes it."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(tmp_path)],
            env={
                **os.environ, 'OMP_NUM_THREADS': '1',
                'PYTHONPATH': os.pathsep.join(sys.path)
            },
            stdout=subprocess.DEVNULL,
            stderr=open(tmp_path / f'{rank}.err', 'w')) for rank in range(2)
    ]
    try:
        alone = [
            script.gradients(
                script.make_model(dense_segmentor_config()),
                dense_batch_factory(seed=rank)) for rank in range(2)
        ]
        for rank, process in enumerate(processes):
            code = process.wait(timeout=180)
            assert code == 0, (tmp_path / f'{rank}.err').read_text()[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found = [
        torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        for rank in range(2)
    ]
    assert any((a - b).abs().max() > 1e-3
               for a, b in zip(alone[0].values(), alone[1].values()))
    for name, first in alone[0].items():
        expected = (first + alone[1][name]) / 2
        assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close(
            found[0][name], expected, rtol=1e-4, atol=1e-6)
