# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What the shell scripts start, with programs that only print."""
import os
import subprocess
from pathlib import Path
from typing import List

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'
PRINT = '#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n'


@pytest.fixture
def printer(tmp_path) -> Path:
    """A folder with a python and an srun that print their arguments."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name in ('python', 'srun'):
        (folder / name).write_text(PRINT)
        (folder / name).chmod(0o755)
    return folder


def run(printer: Path, script: Path, *args: str, **env: str) -> List[str]:
    done = subprocess.run(
        ['bash', str(script), *args],
        cwd=printer,
        env=dict(PATH=f'{printer}:{os.environ["PATH"]}', **env),
        capture_output=True,
        text=True,
        check=True,
        timeout=30)
    return done.stdout.splitlines()


def test_dist_train_on_one_node(printer):
    assert run(printer, TOOLS / 'dist_train.sh', 'my config.py', '4',
               '--resume') == [
                   '-m', 'torch.distributed.run', '--nnodes=1',
                   '--node-rank=0', '--master-addr=127.0.0.1',
                   '--master-port=29500', '--nproc-per-node=4',
                   f'{TOOLS}/train.py', 'my config.py', '--launcher',
                   'pytorch', '--resume'
               ]


def test_dist_test_on_two_nodes(printer):
    assert run(
        printer,
        TOOLS / 'dist_test.sh',
        'a.py',
        'b.pth',
        '2',
        '--cfg-options',
        'x=[1, 2]',
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='node0',
        PORT='1234',
        TORCHRUN_ARGS='--max-restarts 3') == [
            '-m', 'torch.distributed.run', '--nnodes=2', '--node-rank=1',
            '--master-addr=node0', '--master-port=1234', '--nproc-per-node=2',
            '--max-restarts', '3', f'{TOOLS}/test.py', 'a.py', 'b.pth',
            '--launcher', 'pytorch', '--cfg-options', 'x=[1, 2]'
        ]


def test_slurm_train(printer):
    assert run(
        printer,
        TOOLS / 'slurm_train.sh',
        'gpus',
        'job',
        'a.py',
        'dir',
        '--amp',
        GPUS='4',
        SRUN_ARGS='--time 1:00',
        PYTHON='py') == [
            '-p', 'gpus', '--job-name=job', '--gres=gpu:4', '--ntasks=4',
            '--ntasks-per-node=4', '--cpus-per-task=5', '--kill-on-bad-exit=1',
            '--time', '1:00', 'py', '-u', f'{TOOLS}/train.py', 'a.py',
            '--work-dir', 'dir', '--launcher', 'slurm', '--amp'
        ]


def test_source_tree_is_found(printer):
    (printer / 'python').write_text('#!/bin/sh\necho "$PYTHONPATH"\n')
    found, = run(printer, TOOLS / 'dist_train.sh', 'a.py', '1')
    assert Path(found).resolve() == ROOT
    found, = run(
        printer, TOOLS / 'dist_train.sh', 'a.py', '1', PYTHONPATH='mine')
    assert found.endswith(':mine')
    # An installed copy leaves the path alone.
    copy = printer / 'mim' / 'dist_train.sh'
    copy.parent.mkdir()
    copy.write_text((TOOLS / 'dist_train.sh').read_text())
    assert run(printer, copy, 'a.py', '1') == ['']


@pytest.mark.parametrize('script', [
    'dist_train.sh', 'dist_test.sh', 'slurm_train.sh'
])
def test_usage(script):
    done = subprocess.run(['bash', str(TOOLS / script), 'a.py'],
                          capture_output=True,
                          text=True,
                          timeout=30)
    assert done.returncode == 2
    assert done.stderr.startswith(f'usage: {script} ')
    assert os.access(TOOLS / script, os.X_OK)
