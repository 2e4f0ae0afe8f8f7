# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json

import pytest


@pytest.fixture
def runs(tmp_path):
    """Two work directories of one config."""
    for seed, miou in ((0, 34.), (1, 30.)):
        run = tmp_path / 'runs' / f'seed{seed}'
        logs = run / '20260101_000000' / 'vis_data'
        logs.mkdir(parents=True)
        (logs / 'scalars.json').write_text(
            json.dumps(dict(loss=.5, mIoU=miou, step=10)))
        (run / 'cps_x.py').write_text(
            f'randomness = dict(seed={seed})')
    return sorted((tmp_path / 'runs').iterdir())


def test_table_is_printed_and_written(run_tool, runs, tmp_path):
    out = tmp_path / 'table.md'
    done = run_tool('analysis/compare_runs', *runs, '--out', out)
    row = '| `cps_x` | 10 | 34.0 | 30.0 | 32.0 ± 2.8 | 0.500 |'
    assert (done.code, done.err) == (0, '')
    assert row in out.read_text().splitlines()
    assert row in done.out.splitlines()


def test_metric_that_nobody_logged(run_tool, runs):
    done = run_tool('analysis/compare_runs', *runs, '--metric', 'AP')
    assert done.code == 2
    assert done.err.startswith(
        "compare_runs.py: error: 'AP' was logged by none of the 2 trainings")
