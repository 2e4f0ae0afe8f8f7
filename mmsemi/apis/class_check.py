# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Do data and model speak of the same classes, and are the masks right?"""
from typing import Any, List, Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmsemi.compat import is_installed
from mmsemi.datasets import leaf_datasets

#: Modules whose ``num_classes`` is something else than the number of classes
#: to predict: objectness, and a classification backbone.
_OTHER_CLASSES = ('rpn_head', 'backbone')
#: Modules of models whose heads count other classes than those of the data:
#: words, or things apart from stuff.
_OTHER_MODELS = ('language_model', 'semantic_head')


def class_problems(dataset: Any,
                   model: Optional[nn.Module] = None) -> List[str]:
    """Compare a dataset's classes with its annotations and with a model.

    Args:
        dataset (Any): A built dataset, possibly made of sources or wrapped.
        model (nn.Module, optional): A built model. Defaults to None.

    Returns:
        list[str]: What is wrong, one sentence each.
    """
    problems = []
    for source in leaf_datasets(dataset):
        classes = (source.metainfo or {}).get('classes')
        found = getattr(source, 'cat_ids', None)
        if classes and found is not None and len(found) != len(classes):
            problems.append(
                f'The annotations {getattr(source, "ann_file", "")} have '
                f'{len(found)} of the {len(classes)} classes that the '
                f"dataset's metainfo lists ({_short(classes)}). Write "
                'metainfo=dict(classes=(...)) with the names of their '
                '"categories".')
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    if model is None or not classes:
        return problems
    modules = dict(model.named_modules())
    if any(name.rpartition('.')[2] in _OTHER_MODELS for name in modules):
        return problems
    for name, module in modules.items():
        if hasattr(module, 'check_classes'):
            try:
                module.check_classes(classes)
            except ValueError as error:
                problems.append(f'{name}: {error}')
        number = getattr(module, 'num_classes', None)
        # An mmseg model repeats the number of its decode_head.
        if hasattr(module, 'decode_head'):
            continue
        if not isinstance(number, int) or any(
                part in _OTHER_CLASSES for part in name.split('.')):
            continue
        if number != len(classes):
            problems.append(
                f'The model has num_classes={number} in {name} '
                f'({type(module).__name__}), but the dataset has '
                f'{len(classes)} classes ({_short(classes)}).')
    return problems


def check_files(dataset: Any, num_images: int = 100) -> None:
    """Refuse missing files and wrong masks in the mmseg datasets inside.

    Args:
        dataset (Any): A built dataset, possibly made of sources or wrapped.
        num_images (int): How many masks of each are read; 0 for all.
            Defaults to 100.

    Raises:
        FileNotFoundError: If a listed image or mask does not exist.
        ValueError: See :func:`mmsemi.datasets.check_semantic_dataset`.
    """
    if not is_installed('mmseg'):
        return
    from mmseg.datasets import BaseSegDataset

    from mmsemi.datasets.semantic_checks import check_semantic_dataset
    for source in leaf_datasets(dataset):
        if isinstance(source, BaseSegDataset):
            check_semantic_dataset(source, num_images)


class ClassCheckHook(Hook):
    """Refuse to train, validate or test with wrong classes or masks.

    mmdet itself goes on: annotations of classes that are not listed are
    left out without a word, and labels beyond the model's classes fail deep
    inside a loss, or not at all. With mmseg's datasets a wrong mask does the
    same, and a missing one fails only when its turn comes; so of these the
    files are looked at too (:func:`check_files`).
    ``check_classes = False`` in the config turns the check off.

    Raises:
        FileNotFoundError: See :func:`check_files`.
        ValueError: See :func:`class_problems` and :func:`check_files`.
    """

    priority = 'HIGHEST'

    def before_train(self, runner: Runner) -> None:
        """Check the training and the validation data."""
        _check(runner, runner.train_dataloader.dataset, 'train_dataloader')
        if runner.val_loop is not None:
            _check(runner, runner.val_loop.dataloader.dataset,
                   'val_dataloader')

    def before_test(self, runner: Runner) -> None:
        """Check the test data."""
        _check(runner, runner.test_loop.dataloader.dataset,
               'test_dataloader')


def _check(runner: Runner, dataset: Any, field: str) -> None:
    problems = class_problems(dataset, runner.model)
    if problems:
        raise ValueError(
            f'{field}: ' + ' '.join(problems[:3]) +
            ' If this is meant, set check_classes=False in the config.')
    try:
        check_files(dataset)
    except (FileNotFoundError, ValueError) as error:
        # The type stays, and the message tells which loader it is about.
        raise type(error)(f'{field}: {error}') from None


def _short(classes: Any) -> str:
    text = ', '.join(map(str, classes))
    return text if len(text) <= 60 else f'{text[:57]}...'
