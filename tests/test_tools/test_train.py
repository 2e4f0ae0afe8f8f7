# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from pathlib import Path

import pytest
import torch


def load(path: Path) -> dict:
    return torch.load(path, weights_only=False)


def test_default_work_dir(write_config, run_tool, tmp_path):
    config = write_config('train_cfg.update(max_iters=2)', 'my.config')
    done = run_tool('train', config)
    assert done.code == 0, done.err
    saved = load(tmp_path / 'work_dirs' / 'my.config' / 'iter_2.pth')
    assert int(saved['state_dict']['step']) == 2


def test_resume_continues_with_the_same_weights(write_config, run_tool,
                                                tmp_path):
    config = write_config()
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    assert run_tool('train', config, '--work-dir', whole).code == 0
    # The first start finds nothing to resume from.
    first = run_tool('train', config, '--work-dir', parts, '--resume',
                     '--cfg-options', 'train_cfg.max_iters=2')
    assert first.code == 0, first.err
    assert not (parts / 'iter_4.pth').exists()
    assert run_tool('train', config, '--work-dir', parts,
                    '--resume').code == 0
    expected, resumed = (
        load(folder / 'iter_4.pth')['state_dict'] for folder in (whole, parts))
    assert int(expected['step']) == 4
    for key, value in expected.items():
        assert torch.equal(value, resumed[key]), key


def test_seed_decides_the_weights(trained, run_tool, tmp_path):
    weights = []
    for number, seed in enumerate((0, 1)):
        work_dir = tmp_path / str(number)
        done = run_tool('train', trained / 'tiny.py', '--work-dir', work_dir,
                        '--seed', seed, '--cfg-options',
                        'train_cfg.max_iters=2')
        assert done.code == 0, done.err
        weights.append(load(work_dir / 'iter_2.pth')['state_dict'])
    reference = load(trained / 'work_dir' / 'iter_2.pth')['state_dict']
    key = 'student.backbone.conv1.weight'
    assert torch.equal(weights[0][key], reference[key])
    assert not torch.equal(weights[1][key], reference[key])


@pytest.mark.parametrize('args, message', [
    (['missing.py'], 'There is no config missing.py'),
    (['{config}', '--cfg-options', 'train_cgf.max_iters=1'],
     "the config has no 'train_cgf'. Did you mean train_cfg"),
    (['{config}', '--cfg-options', 'data_root=elsewhere'],
     'data_root is a variable that the config file has already used. Set '
     'the keys where it was used: '
     'train_dataloader.dataset.datasets.0.data_root'),
    (['{config}', '--resume', 'missing.pth'],
     'There is no checkpoint missing.pth (--resume).'),
    (['{config}', '--cfg-options', 'load_from=missing.pth'],
     'There is no checkpoint missing.pth (load_from).'),
    (['{config}', '--auto-scale-lr'], 'auto_scale_lr=dict(base_batch_size'),
    (['{config}', '--launcher', 'pytorch'],
     'the environment has no RANK, WORLD_SIZE'),
])
def test_wrong_arguments_end_in_one_line(write_config, run_tool, tmp_path,
                                         args, message):
    config = str(write_config())
    done = run_tool('train', *(a.format(config=config) for a in args))
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith('train.py: error: ')
    assert 'Traceback' not in done.err
    assert not (tmp_path / 'work_dirs').exists()
