# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmengine.config import Config


def test_prints_what_can_be_read_again(write_config, run_tool, tmp_path):
    done = run_tool('print_config', write_config(), '--cfg-options',
                    'train_cfg.max_iters=7', '--out', tmp_path / 'all.py')
    assert (done.code, done.out, done.err) == (0, '', '')
    cfg = Config.fromfile(tmp_path / 'all.py')
    assert cfg.train_cfg.max_iters == 7
    assert cfg.model.type == 'mmsemi.SemiInstanceSegmentor'


def test_diff_shows_changes_only(write_config, run_tool):
    base = write_config(name='base')
    child = base.with_name('child.py')
    child.write_text("_base_ = './base.py'\n"
                     'train_cfg = dict(max_iters=9, val_interval=3)\n'
                     'custom_hooks = []\n')
    done = run_tool('print_config', child, '--diff', base)
    assert done.out.splitlines() == [
        '+ custom_hooks = []',
        "- custom_hooks[0].type = 'mmsemi.TeacherUpdateHook'",
        '- train_cfg.max_iters = 4',
        '+ train_cfg.max_iters = 9',
        '+ train_cfg.val_interval = 3',
    ]


def test_missing_base_is_one_line(write_config, run_tool):
    done = run_tool('print_config', write_config(), '--diff', 'nowhere.py')
    assert done.code == 2
    assert done.err.startswith(
        'print_config.py: error: There is no config nowhere.py')
