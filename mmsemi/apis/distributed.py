# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Processes that talk to each other on machines without a GPU.

mmengine sets the current CUDA device whatever the backend, and gives every
distributed model a CUDA device. Both fail without a GPU, so both are done
here for gloo; with a GPU, mmengine does it all.
"""
import datetime
import os
import subprocess
from typing import Dict, Tuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed

#: Environment variables of rank, number of processes and rank on the node.
_RANK_VARIABLES: Dict[str, Tuple[str, str, str]] = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE',
            'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def check_launcher(launcher: str) -> None:
    """Raise ValueError if the processes were not started as said.

    Args:
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.
    """
    if launcher == 'none':
        return
    if launcher not in _RANK_VARIABLES:
        raise ValueError(f'launcher={launcher!r}; allowed are none, '
                         f'{", ".join(_RANK_VARIABLES)}.')
    missing = [
        name for name in _RANK_VARIABLES[launcher] if name not in os.environ
    ]
    if missing:
        raise ValueError(
            f'launcher={launcher!r}, but the environment has no '
            f'{", ".join(missing)}: this process was not started by it. Use '
            'tools/dist_train.sh, tools/slurm_train.sh, or leave --launcher '
            'out for one process.')


def use_cpu_backend(cfg: Config) -> None:
    """Make a config of several processes run without a GPU, in place.

    With a GPU or another accelerator, or with one process, it does nothing.

    Args:
        cfg (Config): With ``launcher``.
    """
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return
    env_cfg = cfg.get('env_cfg') or {}
    dist_cfg = {**env_cfg.get('dist_cfg', {}), 'backend': 'gloo'}
    cfg.env_cfg = {**env_cfg, 'dist_cfg': dist_cfg}
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    if wrapper.get('type', '').endswith('DistributedDataParallel'):
        # None is how torch spells a model that is on no GPU.
        wrapper.setdefault('device_ids', None)
    cfg.model_wrapper_cfg = wrapper


def init_cpu_processes(cfg: Config) -> None:
    """Start the process group where mmengine cannot, that is without a GPU.

    Args:
        cfg (Config): After :func:`use_cpu_backend`.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none' or get_device() != 'cpu' or is_distributed():
        return
    rank, world_size, local_rank = (
        os.environ[name] for name in _RANK_VARIABLES[launcher])
    os.environ.update(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=local_rank)
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_slurm_host() \
            if launcher == 'slurm' else '127.0.0.1'
    options = {}
    timeout = cfg.env_cfg.dist_cfg.get('timeout')
    if timeout is not None:
        options['timeout'] = datetime.timedelta(seconds=timeout)
    torch.distributed.init_process_group('gloo', **options)


def end_processes() -> None:
    """Close the process group, if there is one.

    To be called by all processes after their work. Left to the end of the
    interpreter, its threads may outlive what they use.
    """
    if is_distributed():
        torch.distributed.destroy_process_group()


def _first_slurm_host() -> str:
    hosts = subprocess.run(
        ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']],
        check=True,
        capture_output=True,
        text=True,
        timeout=60).stdout.split()
    return hosts[0]
