# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Two processes share the labelling and agree on every choice."""
import json
import os
import socket
import subprocess
import sys

import pytest
import torch

LOOPS = dict(
    stpp=dict(
        type='mmsemi.SelfTrainingLoop',
        round_iters=3,
        select_reliable=True,
        source_ratio=[1, 1]),
    gist=dict(
        type='mmsemi.IterativeSelfTrainingLoop',
        schedule='greedy',
        round_iters=2,
        stage_iters=2,
        stages=2,
        beam=2,
        held_out_fraction=.5))
MASKS = dict(stpp=9 + 5, gist=None)


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize('name', sorted(LOOPS))
def test_two_processes(tiny_rounds, boxes_root, tmp_path, name):
    settings = dict(
        root=boxes_root,
        work_dir=str(tmp_path),
        loop=dict(LOOPS[name], val_interval=100))
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join(sys.path),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(free_port()),
        'WORLD_SIZE': '2'
    }
    processes = [
        subprocess.Popen(
            [sys.executable, tiny_rounds.__file__,
             json.dumps(settings)],
            env={
                **environment, 'RANK': str(rank),
                'LOCAL_RANK': str(rank)
            },
            stdout=subprocess.DEVNULL,
            stderr=open(tmp_path / f'{rank}.err', 'w')) for rank in range(2)
    ]
    try:
        for rank, process in enumerate(processes):
            code = process.wait(timeout=300)
            assert code == 0, (tmp_path / f'{rank}.err').read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ours, theirs = (
        torch.load(tmp_path / f'rank{rank}.pth', weights_only=True)
        for rank in range(2))
    for key, value in ours.items():
        if 'running' not in key:
            assert torch.equal(value, theirs[key]), key
    masks = list(tmp_path.glob('self_training/round_*/masks/**/*.png'))
    if MASKS[name] is not None:
        assert len(masks) == MASKS[name]
    assert masks and len(masks) % 9 in (0, 5)
    assert not list(tmp_path.rglob('*.tmp'))
