# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What rounds of training ask of a config, looked at before round 0."""
from typing import Any, List, Mapping

from mmengine.hooks import EarlyStoppingHook, EMAHook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.runner import Runner
from torch import nn


def bare_model(model: nn.Module) -> nn.Module:
    """Return a model without distributed wrappers."""
    while is_model_wrapper(model):
        model = model.module
    return model


def check_count(value: Any, field: str, least: int = 1) -> None:
    """Raise ValueError unless ``value`` is a whole number from ``least``."""
    if isinstance(value, bool) or not isinstance(value,
                                                 int) or value < least:
        raise ValueError(f'{field}={value!r}; allowed are whole numbers from '
                         f'{least}.')


def check_dataloader(dataloader: Any) -> None:
    """Refuse a ``train_dataloader`` that no later round can be made from.

    Args:
        dataloader (Any): What the loop is given.

    Raises:
        TypeError: If it is no config.
        ValueError: If its data are not one source of labelled images.
    """
    if not isinstance(dataloader, Mapping):
        raise TypeError('train_dataloader must be a config dict, got '
                        f'{type(dataloader).__name__}.')
    kinds = []
    for key in ('dataset', 'sampler'):
        kind = (dataloader.get(key) or {}).get('type')
        kinds.append(str(getattr(kind, '__name__', kind)).split('.')[-1])
    sources = (dataloader.get('dataset') or {}).get('datasets') or ()
    if kinds != ['MultiSourceDataset', 'MultiSourceSampler'] or len(
            sources) != 1 or dataloader.get('batch_sampler') is not None:
        raise ValueError(
            'Rounds of training need the labelled images as only source: '
            "train_dataloader=dict(dataset=dict(type='mmsemi."
            "MultiSourceDataset', datasets=[labelled]), sampler=dict(type="
            "'mmsemi.MultiSourceSampler', batch_size=..., source_ratio=[1]))"
            f'. Found {" and ".join(kinds)} with {len(sources)} sources; the '
            'unlabelled images are train_cfg.unlabeled_dataset.')


def check_runner(runner: Runner) -> None:
    """Refuse an optimizer or hook that cannot start anew.

    Args:
        runner (Runner): The runner, before its optimizer is built.

    Raises:
        TypeError: If the optimizer is no config.
        ValueError: If a hook would go on from round to round.
    """
    if isinstance(runner.optim_wrapper, OptimWrapper):
        raise TypeError('optim_wrapper must be a config dict: every round '
                        'has an optimizer of its own.')
    for hook in runner.hooks:
        if isinstance(hook, (EMAHook, EarlyStoppingHook)):
            raise ValueError(
                f'{type(hook).__name__} goes on over all rounds, which would '
                'mix or end them. Leave it out of custom_hooks.')


def check_segmentor(runner: Runner) -> None:
    """Refuse a model that cannot be built anew or gives no label maps.

    Args:
        runner (Runner): The runner.

    Raises:
        TypeError: If the model is no config.
        ValueError: If the model gives no logits, or reads sentences.
    """
    if not isinstance(runner.cfg.get('model'), Mapping):
        raise TypeError('Rounds of training build their model anew, from '
                        'cfg.model, which must be a dict. Make the runner '
                        'with Runner.from_cfg.')
    model = bare_model(runner.model)
    if not callable(getattr(model, 'inference', None)) or not hasattr(
            model, 'decode_head'):
        raise ValueError(
            f'model.type={type(model).__name__} is no EncoderDecoder of '
            'mmseg, which rounds of training need: methods that wrap a '
            'segmenter have a loop of their own.')
    if getattr(model, 'reads_text', False):
        raise ValueError(
            f'model.type={type(model).__name__} reads sentences, but rounds '
            'of training label whole images with one label map each. Use a '
            'method that labels online, such as mmsemi.SemiRES.')
    if getattr(model, 'out_channels', None) == 1:
        raise ValueError(
            'model.decode_head.out_channels=1 gives one sigmoid; use '
            'out_channels=2 and a softmax over background and foreground.')


def check_accumulation(optim_wrapper: Mapping, lengths: List[int]) -> None:
    """Refuse rounds that end between two optimizer steps.

    Args:
        optim_wrapper (Mapping): Config of one optimizer or several.
        lengths (list[int]): Iterations of every round.

    Raises:
        ValueError: If gradients would be lost.
    """
    parts = [optim_wrapper, *optim_wrapper.values()]
    for part in parts:
        count = part.get('accumulative_counts', 1) if isinstance(
            part, Mapping) else 1
        wrong = [length for length in lengths if length % count]
        if wrong:
            raise ValueError(
                f'A round has {wrong[0]} iterations, no multiple of '
                f'optim_wrapper.accumulative_counts={count}: its last '
                'gradients would be lost.')


def schedules_of(config: Any, length: int) -> Any:
    """Return schedules that end with the round where they name no end.

    Args:
        config (Any): ``param_scheduler``: None, a dict, a list of dicts, or
            these by the name of an optimizer.
        length (int): Iterations of the round.

    Returns:
        Any: A config of the same form.

    Raises:
        TypeError: If a schedule is built already.
        ValueError: If a schedule counts epochs or begins after the round.
    """
    if isinstance(config, _ParamScheduler):
        raise TypeError('param_scheduler must be made of config dicts: every '
                        'round has schedules of its own.')
    if isinstance(config, (list, tuple)):
        return [schedules_of(part, length) for part in config]
    if not isinstance(config, Mapping):
        return config
    if 'type' not in config:
        return {k: schedules_of(part, length) for k, part in config.items()}
    if config.get('by_epoch', True):
        raise ValueError(
            f"param_scheduler {config['type']} has by_epoch=True (mmengine's "
            'default), but rounds count iterations. Set by_epoch=False.')
    # mmengine's polynomial ends a step before `end`, and some code sets the
    # rate a step late: one or two more are meant.
    if config.get('end', length) > length + 2:
        print_log(
            f"param_scheduler {config['type']} has end={config['end']}, but "
            f'a round ends after {length} iterations; schedules are those of '
            'one round.',
            logger='current',
            level=30)
    if config.get('begin', 0) >= config.get('end', length):
        raise ValueError(
            f"param_scheduler {config['type']} has begin={config['begin']}, "
            f'but a round ends after {length} iterations.')
    return dict({'end': length}, **config)
