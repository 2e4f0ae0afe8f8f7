# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from types import SimpleNamespace

import pytest
from torch import nn

from mmsemi.apis.class_check import (ClassCheckHook, class_problems,
                                     leaf_datasets)


def dataset(classes=('a', 'b', 'c'), found=3, **more) -> SimpleNamespace:
    return SimpleNamespace(
        metainfo=dict(classes=classes),
        cat_ids=list(range(found)),
        ann_file='x.json',
        **more)


class Head(nn.Module):

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes


def model(**children: int) -> nn.ModuleDict:
    return nn.ModuleDict({k: Head(v) for k, v in children.items()})


def test_leaves_of_nested_datasets():
    first, second = dataset(), dataset()
    nested = SimpleNamespace(
        datasets=[SimpleNamespace(dataset=first), second])
    assert list(leaf_datasets(nested)) == [first, second]


def test_fitting_classes():
    # Objectness, and the classes of a pretrained backbone, are others.
    assert class_problems(
        dataset(), model(bbox_head=3, rpn_head=1, backbone=1000)) == []
    assert class_problems(SimpleNamespace(metainfo={})) == []
    # Heads that count words, or things apart from stuff.
    assert class_problems(dataset(), model(head=256, language_model=0)) == []
    assert class_problems(
        dataset(),
        nn.ModuleDict(dict(roi_head=model(head=2, semantic_head=1)))) == []


def test_classes_without_annotations():
    nested = SimpleNamespace(
        datasets=[dataset(), dataset(found=1)],
        metainfo=dict(classes=('a', 'b', 'c')))
    problem, = class_problems(nested)
    assert problem.startswith('The annotations x.json have 1 of the 3 classes '
                              "that the dataset's metainfo lists (a, b, c).")


def test_another_number_than_the_model():
    wrapped = nn.ModuleDict(dict(student=model(mask_head=80)))
    assert class_problems(dataset(), wrapped) == [
        'The model has num_classes=80 in student.mask_head (Head), but the '
        'dataset has 3 classes (a, b, c).'
    ]


def test_hook_refuses_validation_data():
    runner = SimpleNamespace(
        model=model(mask_head=3),
        train_dataloader=SimpleNamespace(dataset=dataset()),
        val_loop=None)
    hook = ClassCheckHook()
    hook.before_train(runner)
    wrong = SimpleNamespace(dataset=dataset(found=2))
    runner.val_loop = SimpleNamespace(dataloader=wrong)
    with pytest.raises(ValueError, match='val_dataloader: .* 2 of the 3'):
        hook.before_train(runner)
    runner.test_loop = SimpleNamespace(dataloader=wrong)
    with pytest.raises(ValueError, match='test_dataloader: '):
        hook.before_test(runner)
