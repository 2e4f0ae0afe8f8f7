# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Two nodes on the loopback device, one process each, over gloo."""
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Callable, Dict, List, Optional

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]
# Far more than it takes: a machine may be busy.
LIMIT = 240

# A node that hangs in the third step, after the checkpoint of the second.
PAUSE = '''
import os
import time
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class PauseHook(Hook):

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if os.environ.get('PAUSE') and runner.iter == 2:
            Path(os.environ['PAUSE']).touch()
            time.sleep(600)
'''
EXTRA = '''
custom_imports['imports'].append('pause_hook')
custom_hooks.append(dict(type='PauseHook'))
env_cfg = dict(dist_cfg=dict(backend='nccl', timeout=60))
'''


class Nodes:
    """Launches the nodes of a training and leaves none behind."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.marker = f'MMSEMI_TEST={uuid.uuid4()}'
        self.nodes: List[subprocess.Popen] = []

    def launch(self, rank: int, port: int, *args: object,
               **env: str) -> subprocess.Popen:
        """Start a node."""
        key, value = self.marker.split('=')
        log = self.config.with_name(f'node{rank}_{len(self.nodes)}.log')
        with open(log, 'w') as file:
            node = subprocess.Popen(
                [
                    'bash',
                    str(REPO / 'tools/dist_train.sh'),
                    str(self.config), '1', *map(str, args)
                ],
                cwd=self.config.parent,
                env={
                    **os.environ,
                    'PYTHON': sys.executable,
                    'PYTHONPATH': str(self.config.parent),
                    'OMP_NUM_THREADS': '1',
                    'PYTHONFAULTHANDLER': '1',
                    'GLOO_SOCKET_IFNAME': 'lo',
                    'NNODES': '2',
                    'NODE_RANK': str(rank),
                    'PORT': str(port),
                    key: f'{value}-{rank}',
                    **env
                },
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True)
        node.log = log
        self.nodes.append(node)
        return node

    def processes(self, rank: Optional[int] = None) -> Dict[int, str]:
        """Return the processes of a node, or of all, by their ids."""
        wanted = self.marker + ('' if rank is None else f'-{rank}')
        found = {}
        for folder in Path('/proc').iterdir():
            try:
                environment = (folder / 'environ').read_bytes()
                command = (folder / 'cmdline').read_bytes()
            except OSError:
                continue
            if wanted.encode() in environment and command:
                found[int(folder.name)] = command.decode()
        return found

    def kill(self,
             rank: Optional[int] = None,
             how: int = signal.SIGKILL) -> None:
        """Kill a node, or all, by default with kill -9."""
        for pid in self.processes(rank):
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                pass

    def finish(self, node: subprocess.Popen) -> int:
        """Wait for a node; if it hangs, fail and show where all are."""
        try:
            return node.wait(LIMIT)
        except subprocess.TimeoutExpired:
            running = '\n'.join(self.processes().values())
            # The fault handler answers with the stacks of all threads.
            self.kill(how=signal.SIGABRT)
            for other in self.nodes:
                other.wait(LIMIT)
            pytest.fail(f'A node hangs. Running:\n{running}\n' + '\n'.join(
                f'{other.log.name}:\n{other.log.read_text()[-6000:]}'
                for other in self.nodes))


@pytest.fixture
def nodes(write_config, tmp_path) -> Nodes:
    (tmp_path / 'pause_hook.py').write_text(PAUSE)
    nodes = Nodes(write_config(EXTRA))
    yield nodes
    nodes.kill()
    for node in nodes.nodes:
        node.wait(LIMIT)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def train_on_two(nodes: Nodes, work_dir: Path, *args: object) -> None:
    """Train on both nodes to the end."""
    port = free_port()
    running = [
        nodes.launch(rank, port, '--work-dir', work_dir, *args)
        for rank in (0, 1)
    ]
    for node in running:
        assert nodes.finish(node) == 0, node.log.read_text()[-3000:]


def wait_for(condition: Callable[[], bool], nodes: Nodes) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        for node in nodes.nodes:
            assert node.poll() is None, node.log.read_text()[-3000:]
        assert time.monotonic() < deadline, 'The nodes did not get there.'
        time.sleep(0.1)


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=False)


@pytest.fixture(scope='module')
def uninterrupted(config_text, tmp_path_factory) -> Path:
    """Checkpoint of a training that nothing happened to."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    (folder / 'pause_hook.py').write_text(PAUSE)
    (folder / 'tiny.py').write_text(config_text + EXTRA)
    nodes = Nodes(folder / 'tiny.py')
    try:
        train_on_two(nodes, folder / 'work_dir')
        assert nodes.processes() == {}
    finally:
        nodes.kill()
    return folder / 'work_dir' / 'iter_4.pth'


def test_two_nodes_train(uninterrupted):
    saved = weights(uninterrupted)
    assert saved['meta']['iter'] == 4
    assert int(saved['state_dict']['step']) == 4
    log = next(uninterrupted.parent.glob('*/*.log')).read_text()
    # mmengine's words for the number of processes.
    assert 'GPU number: 2' in log


def test_killed_node_is_resumed_exactly(nodes, tmp_path, uninterrupted):
    work_dir, paused = tmp_path / 'work_dir', tmp_path / 'paused'
    port = free_port()
    first = nodes.launch(0, port, '--work-dir', work_dir)
    second = nodes.launch(
        1, port, '--work-dir', work_dir, PAUSE=str(paused))
    wait_for(paused.exists, nodes)
    wait_for((work_dir / 'last_checkpoint').exists, nodes)
    start = time.monotonic()
    nodes.kill(1)
    second.wait(LIMIT)
    assert nodes.finish(first) != 0
    # It does not even wait for the time-out of its connections.
    assert time.monotonic() - start < 60
    assert nodes.processes() == {}
    assert not (work_dir / 'iter_4.pth').exists()

    train_on_two(nodes, work_dir, '--resume')
    log = nodes.nodes[-2].log.read_text()
    assert 'resumed epoch: 0, iter: 2' in log
    expected, resumed = weights(uninterrupted), weights(
        work_dir / 'iter_4.pth')
    assert expected['state_dict'].keys() == resumed['state_dict'].keys()
    for key, value in expected['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key
    first = expected['optimizer']['state']
    for index, state in resumed['optimizer']['state'].items():
        for key, value in state.items():
            assert torch.equal(value, first[index][key])
