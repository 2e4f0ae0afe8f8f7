# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
import math

import pytest

from mmsemi.apis.run_records import (RunRecord, comparison_table, last_value,
                                     read_scalars)


@pytest.fixture
def write_run(tmp_path):
    """Write a work directory as mmengine does; return its path."""

    def write(folder, name, seed, *lines, start='20260101_000000'):
        logs = tmp_path / folder / start / 'vis_data'
        logs.mkdir(parents=True)
        (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
        (tmp_path / folder / f'{name}.py').write_text(
            f'randomness = dict(seed={seed})')
        return tmp_path / folder

    return write


def test_last_values_of_the_latest_start(write_run):
    write_run('run', 'cps_x', 3, dict(loss=9., mIoU=1., step=7))
    path = write_run(
        'run',
        'cps_x',
        3,
        dict(loss=2., step=50),
        dict(loss=1., step=100),
        dict(mIoU=30., step=100),
        start='20260102_000000')
    assert last_value(read_scalars(path), 'loss') == 1.
    record = RunRecord.read(path, ['mIoU', 'PA'])
    assert (record.name, record.seed, record.step) == ('cps_x', 3, 100)
    assert record.values['mIoU'] == 30. and math.isnan(record.values['PA'])


@pytest.mark.parametrize('text', ['{"loss": 1}\n{"lo', '3', 'null'])
def test_broken_log_is_named(write_run, text):
    path = write_run('run', 'a', 0, dict(loss=1.))
    log = next(path.glob('*/vis_data/scalars.json'))
    log.write_text(text)
    with pytest.raises(ValueError, match=r'scalars.json, line \d is no JSON'):
        read_scalars(path)


def test_folder_without_training(tmp_path, write_run):
    with pytest.raises(FileNotFoundError, match='no work directory'):
        read_scalars(tmp_path)
    path = write_run('run', 'a', 0, dict(loss=1., step=1))
    (path / 'a.py').unlink()
    with pytest.raises(FileNotFoundError, match='holds no config'):
        RunRecord.read(path, ['loss'])


def record(name, seed, miou, step=3000, loss=.25):
    return RunRecord(name, seed, step, dict(mIoU=miou, loss=loss))


def test_table_by_config_and_length():
    table = comparison_table([
        record('b', 1, 30., loss=.25),
        record('b', 0, 34., loss=.5),
        record('a', 1, 20.),
        record('b', 1, 40., step=6000)
    ], 'mIoU', ['loss'])
    assert table.splitlines() == [
        '| Config | Steps | mIoU, seed 0 | mIoU, seed 1 | Mean | loss, mean |',
        '| :-- | --: | --: | --: | --: | --: |',
        '| `b` | 3,000 | 34.0 | 30.0 | 32.0 ± 2.8 | 0.375 |',
        '| `a` | 3,000 | – | 20.0 | 20.0 | 0.250 |',
        '| `b` | 6,000 | – | 40.0 | 40.0 | 0.250 |'
    ]


def test_one_seed_twice_is_refused():
    with pytest.raises(ValueError, match='a has two trainings of 3000 steps'):
        comparison_table([record('a', 0, 1.), record('a', 0, 2.)], 'mIoU', [])


def test_missing_values_and_seeds():
    lines = comparison_table(
        [record('a', None, float('nan')),
         record('a', 2, 30.)], 'mIoU', ['loss']).splitlines()
    assert lines[0].startswith('| Config | Steps | mIoU, seed 2 | mIoU, seed '
                               'None | Mean |')
    assert lines[2] == '| `a` | 3,000 | 30.0 | – | – | 0.250 |'
