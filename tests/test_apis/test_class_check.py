# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmseg.datasets import BaseSegDataset
from torch import nn

from mmsemi.apis.class_check import ClassCheckHook, class_problems
from mmsemi.models import SemanticBranch


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


def test_texts_in_another_order_than_the_classes():
    texts = dict(model='char-ngrams', classes=('a', 'b', 'c'))
    branch = SemanticBranch(texts, num_classes=3, in_channels=4)
    wrapped = nn.ModuleDict(dict(head=branch))
    assert class_problems(dataset(), wrapped) == []
    problem, = class_problems(dataset(('a', 'c', 'b')), wrapped)
    assert problem.startswith('head: The text embeddings are of other classes')
    assert "class 1 is 'c' in the data and 'b' in the texts" in problem


def test_another_number_than_the_model():
    wrapped = nn.ModuleDict(dict(student=model(mask_head=80)))
    assert class_problems(dataset(), wrapped) == [
        'The model has num_classes=80 in student.mask_head (Head), but the '
        'dataset has 3 classes (a, b, c).'
    ]


def test_a_decode_head_is_named_once():
    class EncoderDecoder(nn.Module):

        def __init__(self):
            super().__init__()
            self.num_classes = 19
            self.backbone = Head(1000)
            self.decode_head = Head(19)

    problems = class_problems(dataset(), EncoderDecoder())
    assert problems == [
        'The model has num_classes=19 in decode_head (Head), but the dataset '
        'has 3 classes (a, b, c).'
    ]


def test_hook_reads_the_masks_of_mmseg_data(tmp_path):
    for name, value in (('a', 1), ('b', 7)):
        cv2.imwrite(str(tmp_path / f'{name}.jpg'), np.zeros((4, 6, 3)))
        cv2.imwrite(str(tmp_path / f'{name}.png'), np.full((4, 6), value))
    runner = SimpleNamespace(model=model(decode_head=3), val_loop=None)

    def use(**options):
        source = BaseSegDataset(
            metainfo=dict(classes=('a', 'b', 'c')),
            data_root=str(tmp_path),
            **options)
        both = SimpleNamespace(datasets=[source], metainfo=source.metainfo)
        runner.train_dataloader = SimpleNamespace(dataset=both)

    use(indices=[0])
    ClassCheckHook().before_train(runner)
    use()
    with pytest.raises(ValueError, match='train_dataloader: .*b.png.*value 7'):
        ClassCheckHook().before_train(runner)
    use(data_prefix=dict(img_path=''))
    ClassCheckHook().before_train(runner)
    use()
    (tmp_path / 'b.png').unlink()
    with pytest.raises(FileNotFoundError, match='1 of 2 masks'):
        ClassCheckHook().before_train(runner)
    runner.model = model(decode_head=4)
    use(indices=[0])
    with pytest.raises(ValueError, match='num_classes=4 in decode_head'):
        ClassCheckHook().before_train(runner)


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
