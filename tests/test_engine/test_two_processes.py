# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Two processes, one of which finds no pseudo-label."""
import json
import os
import socket
import subprocess
import sys

import pytest
import torch

STEPS = 3


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@pytest.fixture(scope='module')
def ranks(tiny_training, digits_root, tmp_path_factory):
    """list[dict]: What each of two processes ended with."""
    work_dir = tmp_path_factory.mktemp('two')
    settings = dict(
        data_root=digits_root,
        work_dir=str(work_dir),
        max_iters=2 * STEPS,
        interval=2 * STEPS,
        starve=True)
    environment = {
        **os.environ, 'OMP_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join(sys.path),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(free_port()),
        'WORLD_SIZE': '2'
    }
    processes = [
        subprocess.Popen(
            [sys.executable, tiny_training.__file__,
             json.dumps(settings)],
            env={
                **environment, 'RANK': str(rank),
                'LOCAL_RANK': str(rank)
            },
            stdout=subprocess.DEVNULL,
            stderr=open(work_dir / f'{rank}.err', 'w')) for rank in range(2)
    ]
    try:
        for rank, process in enumerate(processes):
            code = process.wait(timeout=300)
            assert code == 0, (work_dir / f'{rank}.err').read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        torch.load(work_dir / f'rank{rank}.pth', weights_only=True)
        for rank in range(2)
    ]


def test_one_rank_had_no_pseudo_label(ranks):
    assert min(ranks[0]['per_image']) > 0
    assert ranks[1]['per_image'] == [0.] * 2 * STEPS


def test_student_weights_are_equal(ranks, tiny_training):
    ours, theirs = (rank['state_dict'] for rank in ranks)
    model = tiny_training.MODELS.build(tiny_training.model_config())
    weights = [name for name, _ in model.student.named_parameters()]
    assert len(weights) > 40
    for name in weights:
        assert torch.equal(ours[f'student.{name}'],
                           theirs[f'student.{name}']), name
    assert int(ours['step']) == int(theirs['step']) == STEPS


def test_teachers_are_equal_buffers_included(ranks):
    ours, theirs = (rank['state_dict'] for rank in ranks)
    names = [name for name in ours if name.startswith('teacher.')]
    assert any('running_var' in name for name in names)
    for name in names:
        assert torch.equal(ours[name], theirs[name]), name


def test_batch_statistics_are_levelled(ranks):
    """Each process saw other images; a checkpoint serves all of them."""
    ours, theirs = (rank['running_mean'] for rank in ranks)
    assert not torch.equal(ours, theirs)
    name = 'student.backbone.bn1.running_mean'
    levelled = [rank['state_dict'][name] for rank in ranks]
    assert torch.equal(*levelled)
    torch.testing.assert_close(levelled[0], (ours + theirs) / 2)
