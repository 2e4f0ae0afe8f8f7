# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmsemi.engine.hooks import (PseudoLabelVisualizationHook,
                                 pseudo_label_visualization_hook)
from mmsemi.visualization.drawing import GAP, TITLE_HEIGHT


def train(tiny_training, digits_root, work_dir, hook=None, **settings):
    runner = tiny_training.make_runner(
        digits_root,
        str(work_dir),
        max_iters=4,
        accumulative_counts=1,
        more_hooks=[dict(type='mmsemi.PseudoLabelVisualizationHook', **hook)]
        if hook else [],
        **settings)
    runner.train()
    return runner.model.state_dict()


def pictures(folder):
    return sorted(path.name for path in Path(folder).glob('*'))


def test_pictures_are_written_and_training_goes_on_unchanged(
        tiny_training, digits_root, tmp_path):
    plain = train(tiny_training, digits_root, tmp_path / 'plain')
    drawn = train(tiny_training, digits_root, tmp_path / 'drawn',
                  dict(interval=2, scale=3, score_thr=0.))
    folder = tmp_path / 'drawn' / 'vis_data' / 'pseudo_labels'
    # Two of a batch's four images are unlabelled.
    assert pictures(folder) == [
        'iter_000002_0.png', 'iter_000002_1.png', 'iter_000004_0.png',
        'iter_000004_1.png'
    ]
    panel = np.array(Image.open(folder / 'iter_000004_1.png'))
    assert panel.shape == (3 * 64 + TITLE_HEIGHT + GAP,
                           4 * (3 * 64 + GAP) + GAP, 3)
    for name, value in plain.items():
        assert torch.equal(value, drawn[name]), name


def test_burn_in_and_other_processes_draw_nothing(tiny_training, digits_root,
                                                  tmp_path, monkeypatch):
    folder = tmp_path / 'pictures'
    hook = dict(interval=1, max_images=1, out_dir=str(folder))
    train(tiny_training, digits_root, tmp_path / 'run', hook, burn_in_steps=3)
    # The third step ends the burn-in.
    assert pictures(folder) == ['iter_000003_0.png', 'iter_000004_0.png']
    monkeypatch.setattr(pseudo_label_visualization_hook, 'is_main_process',
                        lambda: False)
    hook['out_dir'] = str(tmp_path / 'none')
    train(tiny_training, digits_root, tmp_path / 'run', hook)
    assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize('name, value', [('interval', 0), ('interval', None),
                                         ('max_images', 1.5), ('scale', 0),
                                         ('scale', -1)])
def test_bad_numbers_are_refused(name, value):
    with pytest.raises(
            ValueError, match=f'PseudoLabelVisualizationHook.{name}='):
        PseudoLabelVisualizationHook(**{name: value})


def test_plain_model_is_refused(runner_factory):
    runner = runner_factory(
        model=dict(type='ToySegmenter'),
        custom_hooks=[dict(type='mmsemi.PseudoLabelVisualizationHook')])
    with pytest.raises(TypeError, match='PseudoLabelVisualizationHook needs'):
        runner.train()
