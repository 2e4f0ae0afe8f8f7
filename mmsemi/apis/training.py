# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Train and test from a config."""
import os.path as osp
from pathlib import Path
from typing import Any, Mapping, Optional, Union

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .checkpoints import latest_checkpoint, load_checkpoint_file
from .class_check import ClassCheckHook
from .configs import ConfigLike, config_name, load_config
from .data_files import broken_file_named
from .distributed import check_launcher, init_cpu_processes, use_cpu_backend
from .predictors import build_wrapper, check_predictor, check_weights


def train(config: ConfigLike, **options: Any) -> Runner:
    """Train a model.

    Args:
        config (str, Path or Config): See :func:`load_config`.
        **options: Arguments of :func:`prepare_training`.

    Returns:
        Runner: After the training; its ``model`` is the trained one.
    """
    return run_training(prepare_training(config, **options))


def run_training(cfg: Config) -> Runner:
    """Train with a prepared config.

    Args:
        cfg (Config): From :func:`prepare_training`.

    Returns:
        Runner: After the training.
    """
    runner = build_runner(cfg)
    with broken_file_named(cfg):
        runner.train()
    return runner


def run_testing(cfg: Config,
                predictions: Optional[Union[str, Path]] = None) -> dict:
    """Evaluate with a prepared config.

    Args:
        cfg (Config): From :func:`prepare_testing`.
        predictions (str or Path, optional): Pickle file to write the
            predictions to. Defaults to None.

    Returns:
        dict[str, float]: The metrics.
    """
    runner = build_runner(cfg)
    if predictions is not None:
        # Each leaves out what would fill the memory: masks are compressed,
        # logits and ground truth dropped.
        if cfg.get('default_scope') == 'mmseg':
            from mmsemi.evaluation import DumpSemanticResults as DumpFile
        else:
            from mmdet.evaluation import DumpDetResults as DumpFile
        runner.test_evaluator.metrics.append(
            DumpFile(out_file_path=str(predictions)))
    with broken_file_named(cfg):
        return runner.test()


def prepare_training(config: ConfigLike,
                     work_dir: Optional[Union[str, Path]] = None,
                     resume: Union[bool, str, Path] = False,
                     amp: bool = False,
                     auto_scale_lr: bool = False,
                     seed: Optional[int] = None,
                     cfg_options: Optional[Mapping[str, Any]] = None,
                     launcher: str = 'none') -> Config:
    """Load a config for training; nothing is built or written yet.

    Args:
        config (str, Path or Config): See :func:`load_config`.
        work_dir (str or Path, optional): Folder of logs and checkpoints.
            Defaults to None: that of the config, else
            ``work_dirs/{config name}``.
        resume (bool or str or Path): A checkpoint to resume from, or True
            (or 'auto') for the newest one in ``work_dir``; if there is none
            yet, the training starts from its beginning. Defaults to False.
        amp (bool): Whether to train in mixed precision. Defaults to False.
        auto_scale_lr (bool): Whether to scale the learning rate to the batch
            size and number of processes. Defaults to False.
        seed (int, optional): Seed. Defaults to None: that of the config.
        cfg_options (Mapping, optional): See :func:`load_config`.
        launcher (str): What started the processes: 'none', 'pytorch',
            'slurm' or 'mpi'. Defaults to 'none'.

    Returns:
        Config: Ready for :func:`build_runner`.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If an option does not fit the config or this machine.
    """
    cfg = _prepare(config, work_dir, cfg_options, launcher)
    for field in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if cfg.get(field) is None:
            raise ValueError(f'The config {config_name(config)} has no '
                             f'{field}: it cannot be trained.')
    if amp:
        _use_amp(cfg)
    if auto_scale_lr:
        scale = cfg.get('auto_scale_lr') or {}
        if 'base_batch_size' not in scale:
            raise ValueError('--auto-scale-lr needs auto_scale_lr=dict('
                             'base_batch_size=...) in the config.')
        cfg.auto_scale_lr['enable'] = True
    if seed is not None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    # `resume = True` in the config means the newest checkpoint, too.
    if resume or (cfg.get('resume') and not cfg.get('load_from')):
        _set_resume(cfg, resume or True)
    _check_local_file(cfg.get('load_from'), 'load_from')
    return cfg


def prepare_testing(config: ConfigLike,
                    checkpoint: Union[str, Path],
                    which: Optional[str] = None,
                    work_dir: Optional[Union[str, Path]] = None,
                    cfg_options: Optional[Mapping[str, Any]] = None,
                    launcher: str = 'none') -> Config:
    """Load a config for testing; nothing is written yet.

    Args:
        config (str, Path or Config): See :func:`load_config`.
        checkpoint (str or Path): Weights to test.
        which (str, optional): What predicts: 'teacher', 'student',
            'network_0', ..., 'mean', as the model has it. Defaults to None:
            ``model.predict_on`` of the config.
        work_dir (str or Path, optional): See :func:`prepare_training`.
        cfg_options (Mapping, optional): See :func:`load_config`.
        launcher (str): See :func:`prepare_training`.

    Returns:
        Config: Ready for :func:`build_runner`.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If an option does not fit the config, or the checkpoint
            does not hold the model that is to be tested.
    """
    cfg = _prepare(config, work_dir, cfg_options, launcher)
    for field in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        if cfg.get(field) is None:
            raise ValueError(f'The config {config_name(config)} has no '
                             f'{field}: it cannot be tested.')
    _check_local_file(str(checkpoint), 'checkpoint')
    model, kind = build_wrapper(cfg), cfg.model.get('type')
    if which is not None:
        check_predictor(model, which, kind)
        cfg.model.predict_on = which
    if '://' not in str(checkpoint):
        check_weights(
            model,
            load_checkpoint_file(checkpoint)['state_dict'],
            which,
            kind,
            need_teacher=which == 'teacher')
    cfg.load_from = str(checkpoint)
    cfg.resume = False
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a prepared config; also without a GPU.

    Args:
        cfg (Config): From :func:`prepare_training` or
            :func:`prepare_testing`.

    Returns:
        Runner: Call its ``train()`` or ``test()``.

    Raises:
        RuntimeError: If the processes would resume from different
            checkpoints.
    """
    init_cpu_processes(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else \
        Runner.from_cfg(cfg)
    _check_same_start(cfg)
    if cfg.get('check_classes', True):
        runner.register_hook(ClassCheckHook())
    return runner


def _prepare(config: ConfigLike, work_dir: Optional[Union[str, Path]],
             cfg_options: Optional[Mapping[str, Any]],
             launcher: str) -> Config:
    check_launcher(launcher)
    cfg = load_config(config, cfg_options)
    if cfg.get('model') is None:
        raise ValueError(f'The config {config_name(config)} has no model.')
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', config_name(config))
    use_cpu_backend(cfg)
    return cfg


def _use_amp(cfg: Config) -> None:
    if get_device() == 'cpu':
        raise ValueError('--amp needs a GPU, and torch sees none here.')
    wrapper = cfg.optim_wrapper
    kind = str(wrapper.get('type', 'OptimWrapper')).split('.')[-1]
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f'--amp replaces OptimWrapper, but the config has '
                         f'optim_wrapper.type={kind!r}.')
    wrapper['type'] = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def _set_resume(cfg: Config, resume: Union[bool, str, Path]) -> None:
    if resume is True or str(resume) == 'auto':
        found = latest_checkpoint(cfg.work_dir)
        if found is None:
            # `load_from` stays: a first start is no resume.
            cfg.resume = False
            return
        resume = found
    _check_local_file(str(resume), '--resume')
    cfg.resume = True
    cfg.load_from = str(resume)


def _check_same_start(cfg: Config) -> None:
    """Refuse processes that would start from different checkpoints."""
    start = cfg.get('load_from') if cfg.get('resume') else None
    starts = all_gather_object(start)
    if any(other != start for other in starts):
        listed = ', '.join(f'process {rank}: {other or "none"}'
                           for rank, other in enumerate(starts))
        raise RuntimeError(
            f'The processes found different checkpoints in {cfg.work_dir} '
            f'to resume from ({listed}). All nodes must see one work_dir, '
            'on a shared file system.')


def _check_local_file(path: Optional[str], field: str) -> None:
    if path is None or '://' in path:
        return
    if not osp.isfile(osp.expanduser(path)):
        raise FileNotFoundError(f'There is no checkpoint {path} ({field}).')
