# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import re

import numpy as np
import pytest
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope

from mmsemi.datasets import DigitsSemanticDataset, make_digits
from mmsemi.datasets.digit_scenes import DIGIT_CLASSES, DigitSceneComposer

LIST = 'splits/train.seed0-fold0@50.txt'


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return make_digits(
        tmp_path_factory.mktemp('data') / 'digits',
        num_train=24,
        num_val=6,
        percents=(50, ))


def dataset(root, **options):
    options = {
        'ann_file': LIST,
        'data_prefix': dict(img_path='train', seg_map_path='masks/train'),
        **options
    }
    return DATASETS.build(
        dict(
            type='mmsemi.DigitsSemanticDataset',
            data_root=str(root),
            **options))


def test_classes(root):
    meta = dataset(root).metainfo
    assert meta['classes'] == ('background', *DIGIT_CLASSES)
    assert len(set(map(tuple, meta['palette']))) == 11
    assert meta['label_map'] is None and not meta['reduce_zero_label']


def test_masks_are_those_of_the_scenes(root):
    everything = dataset(root, ann_file='')
    assert isinstance(everything, DigitsSemanticDataset)
    assert len(everything) == 24
    load = TRANSFORMS.build(dict(type='mmseg.LoadAnnotations'))
    composer = DigitSceneComposer('train')
    for index in range(3):
        mask = load(everything[index])['gt_seg_map']
        scene = composer.compose(np.random.default_rng([0, 0, index]))
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask == 0, ~scene.masks.any(0))
        for label, expected in zip(scene.labels, scene.masks):
            assert (mask[expected] == label + 1).all()


def test_lists_and_unlabelled_scenes(root):
    labelled = dataset(root)
    unlabelled = dataset(
        root,
        ann_file=LIST.replace('.txt', '-unlabeled.txt'),
        data_prefix=dict(img_path='train'))
    paths = [[info['img_path'] for info in source]
             for source in (labelled, unlabelled)]
    assert len(paths[0]) == len(paths[1]) == 12
    assert not set(paths[0]) & set(paths[1])
    assert 'seg_map_path' in labelled[0] and 'seg_map_path' not in \
        unlabelled[0]
    assert len(dataset(root, ann_file='splits/val.txt')) == 6


@pytest.mark.parametrize('ann_file', ['splits/none.txt', ''])
def test_missing_data_name_the_command(tmp_path, ann_file):
    with pytest.raises(
            FileNotFoundError,
            match=f'make_digits.py {re.escape(str(tmp_path))}'):
        dataset(tmp_path, ann_file=ann_file)
