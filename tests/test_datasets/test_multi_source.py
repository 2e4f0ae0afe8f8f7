# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import DefaultScope
from PIL import Image

from mmsemi.datasets import (MultiSourceDataset, SeededIndex,
                             UnlabeledImageDataset)
from mmsemi.registry import DATASETS

META = dict(classes=('a', 'b'), palette=[(1, 2, 3), (4, 5, 6)])


class Numbers(BaseDataset):
    """Items that are dicts with their number."""

    def __init__(self, size=3, metainfo=META, pipeline=(), **kwargs):
        self.size = size
        # Packing is slow: it collects the garbage of the whole process.
        kwargs.setdefault('serialize_data', False)
        super().__init__(
            metainfo=metainfo, pipeline=list(pipeline), **kwargs)

    def load_data_list(self):
        return [dict(number=i) for i in range(self.size)]


def draw(_):
    return (random.random(), np.random.rand(), torch.rand(()).item())


@pytest.fixture
def images(tmp_path):
    for name in ('a.png', 'b.png'):
        Image.new('RGB', (6, 4)).save(tmp_path / name)
    return tmp_path


def global_states():
    return (random.getstate(), np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist())


# sources


def test_is_a_concat_dataset():
    dataset = MultiSourceDataset([Numbers(3), Numbers(2)])
    assert isinstance(dataset, ConcatDataset)
    assert len(dataset) == 5 and dataset.cumulative_sizes == [3, 5]
    assert [dataset[i]['number'] for i in range(5)] == [0, 1, 2, 0, 1]
    assert dataset[-1]['number'] == 1
    assert dataset.get_data_info(4)['number'] == 1
    assert dataset.metainfo == META
    dataset.metainfo['classes'] = ()
    assert dataset.metainfo == META


def test_one_source_alone():
    dataset = MultiSourceDataset([Numbers(3)])
    assert len(dataset) == 3 and dataset.metainfo == META


def test_lazy_init():
    dataset = MultiSourceDataset([Numbers(3, lazy_init=True)],
                                 lazy_init=True)
    assert not dataset._fully_initialized
    assert not dataset.datasets[0]._fully_initialized
    assert dataset.metainfo == META
    assert dataset[2]['number'] == 2 and dataset._fully_initialized


def test_is_built_under_mmdets_scope(images):
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    coco = dict(
        images=[dict(id=1, file_name='a.png', width=6, height=4)],
        annotations=[
            dict(
                id=1,
                image_id=1,
                category_id=1,
                bbox=[1, 1, 3, 2],
                area=6,
                iscrowd=0,
                segmentation=[[1, 1, 4, 1, 4, 3, 1, 3]])
        ],
        categories=[dict(id=1, name='thing')])
    (images / 'train.json').write_text(json.dumps(coco))
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='PackDetInputs')
    ]
    labeled = dict(
        type='CocoDataset',
        data_root=str(images),
        ann_file='train.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('thing', ), palette=[(9, 9, 9)]),
        pipeline=pipeline)
    unlabeled = dict(
        type='mmsemi.UnlabeledImageDataset',
        img_dir=str(images),
        pipeline=pipeline)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = ROOT_DATASETS.build(
            dict(
                type='mmsemi.MultiSourceDataset',
                datasets=[labeled, unlabeled]))
        assert [
            len(dataset[SeededIndex(i, 0)]['data_samples'].gt_instances)
            for i in range(3)
        ] == [1, 0, 0]
        assert dataset.metainfo['classes'] == ('thing', )
        assert dataset.datasets[1].metainfo == dataset.metainfo
        # The default classes of COCO are not those of the labelled set.
        with pytest.raises(ValueError, match=r"\('thing',\) in source 0, "
                           r"\('person', 'bicycle'"):
            MultiSourceDataset(
                [labeled, {k: v for k, v in labeled.items()
                           if k != 'metainfo'}])


def test_is_built_under_mmsegs_scope(images):
    from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    (images / 'maps').mkdir()
    Image.fromarray(np.array([[0, 1, 2]] * 4, np.uint8)).resize(
        (6, 4), Image.NEAREST).save(images / 'maps' / 'a.png')
    (images / 'train.txt').write_text('a')
    labeled = dict(
        type='BaseSegDataset',
        data_root=str(images),
        ann_file='train.txt',
        img_suffix='.png',
        reduce_zero_label=True,
        data_prefix=dict(img_path='', seg_map_path='maps'),
        metainfo=dict(classes=('x', 'y'), palette=[[1, 1, 1], [2, 2, 2]]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomFlip', prob=1.),
            dict(type='PackSegInputs')
        ])
    unlabeled = dict(
        type='mmsemi.UnlabeledImageDataset',
        img_dir=str(images),
        recursive=False,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomFlip', prob=1.),
            dict(type='PackSegInputs')
        ])
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = MultiSourceDataset([labeled, unlabeled])
        samples = [dataset[i]['data_samples'] for i in range(3)]
    # The map is turned, and its 0 became 255.
    assert samples[0].gt_sem_seg.data[0, 0].tolist() == [1, 1, 0, 0, 255, 255]
    assert all('gt_sem_seg' not in sample for sample in samples[1:])
    assert [sample.reduce_zero_label for sample in samples] == [True] * 3
    assert dataset.metainfo['reduce_zero_label'] is True


@pytest.mark.parametrize('datasets, error, text', [
    ([], ValueError, 'give at least one source'),
    (dict(type='x'), TypeError, 'must be a list of datasets, got dict'),
    ([Numbers(), 3], TypeError, 'Source 1 .* got int'),
    ([[1, 2]], TypeError, 'Source 0 .* got list'),
])
def test_what_is_no_source(datasets, error, text):
    with pytest.raises(error, match=text):
        MultiSourceDataset(datasets)


# empty sources


def test_an_empty_source_is_named():
    with pytest.raises(ValueError, match='Source 1 .*Numbers, is empty'):
        MultiSourceDataset([Numbers(3), Numbers(0)])
    # mmengine itself fails when it packs an empty list.
    with pytest.raises(ValueError, match='Source 0 .*Numbers, is empty'):
        MultiSourceDataset(
            [Numbers(0, serialize_data=True, lazy_init=True)])


def test_an_empty_source_from_a_config_is_named():
    DATASETS.register_module(name='TestNumbers', module=Numbers)
    try:
        with pytest.raises(
                ValueError, match='Source 1 .*TestNumbers, is empty.*'
                'filter_empty_gt'):
            MultiSourceDataset([
                dict(type='mmsemi.TestNumbers'),
                dict(type='mmsemi.TestNumbers', size=0, serialize_data=True)
            ])
    finally:
        DATASETS._module_dict.pop('TestNumbers')


def test_other_errors_of_a_source_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match='no image folder'):
        MultiSourceDataset([
            dict(
                type='mmsemi.UnlabeledImageDataset',
                img_dir=str(tmp_path / 'none'))
        ])
    with pytest.raises(ValueError, match='needs img_dir'):
        MultiSourceDataset([dict(type='mmsemi.UnlabeledImageDataset')])


# metainfo


def test_metainfo_is_handed_down(images):
    unlabeled = UnlabeledImageDataset(str(images))
    dataset = MultiSourceDataset([
        Numbers(metainfo=dict(META, label_map={3: 1}, reduce_zero_label=True)),
        unlabeled
    ])
    assert unlabeled.metainfo == dataset.metainfo
    info = dataset.get_data_info(3)
    assert info['label_map'] == {3: 1} and info['reduce_zero_label'] is True


def test_blank_fields_without_classes_are_filled():
    second = Numbers(metainfo=dict(classes=None, palette=[]))
    MultiSourceDataset([Numbers(), second])
    assert second.metainfo == META


def test_equal_metainfo_in_other_clothes():
    same = dict(classes=['a', 'b'], palette=((1, 2, 3), [4, 5, 6]))
    MultiSourceDataset([Numbers(), Numbers(metainfo=same)])
    array = dict(META, weights=np.ones(2))
    MultiSourceDataset([Numbers(metainfo=array), Numbers(metainfo=array)])
    only_classes = Numbers(metainfo=dict(classes=('a', 'b')))
    MultiSourceDataset([Numbers(), only_classes])
    assert only_classes.metainfo == META


def test_different_metainfo_is_one_error_with_all_keys():
    second = Numbers(
        metainfo=dict(classes=('a', 'c'), palette=META['palette'], extra=1))
    with pytest.raises(ValueError) as info:
        MultiSourceDataset([Numbers(), Numbers(), second])
    text = str(info.value)
    assert "classes: ('a', 'b') in source 0, ('a', 'c') in source 2" in text
    assert 'extra: None in source 0, 1 in source 2' in text
    assert 'palette' not in text


def test_a_differing_field_without_classes_is_refused():
    second = Numbers(metainfo=dict(reduce_zero_label=False))
    first = Numbers(metainfo=dict(META, reduce_zero_label=True))
    with pytest.raises(ValueError, match='reduce_zero_label: True in source'):
        MultiSourceDataset([first, second])


def test_ignored_keys_may_differ():
    second = Numbers(metainfo=dict(META, palette=[(0, 0, 0)] * 2, extra=1))
    for keys in (['palette', 'extra'], ('extra', 'palette')):
        dataset = MultiSourceDataset([Numbers(), second], ignore_keys=keys)
        assert dataset.metainfo == META
    with pytest.raises(ValueError, match='extra'):
        MultiSourceDataset([Numbers(), second], ignore_keys='palette')


# seeded draws


def test_a_seeded_draw_depends_on_its_seed_only():
    dataset = MultiSourceDataset([Numbers(pipeline=[draw])])
    first = dataset[SeededIndex(0, 5)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = global_states()
    assert dataset[SeededIndex(0, 5)] == first
    assert global_states() == before
    other = dataset[SeededIndex(0, 6)]
    assert all(a != b for a, b in zip(first, other))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert draw(None) == first


def test_a_failing_draw_restores_the_random_state():

    def fail(_):
        draw(_)
        raise RuntimeError('broken')

    dataset = MultiSourceDataset([Numbers(pipeline=[fail])])
    before = global_states()
    with pytest.raises(RuntimeError, match='broken'):
        dataset[SeededIndex(0, 5)]
    assert global_states() == before


def test_a_plain_index_is_not_seeded():
    dataset = MultiSourceDataset([Numbers(pipeline=[draw])])
    torch.manual_seed(3)
    first, second = dataset[0], dataset[0]
    assert first != second
    torch.manual_seed(3)
    assert dataset[0][2] == first[2]


# samples that are None


def test_another_item_is_drawn_for_none():
    seen = []

    def drop_even(info):
        seen.append(info['number'])
        return info if info['number'] % 2 else None

    dataset = MultiSourceDataset(
        [Numbers(3, pipeline=[drop_even]),
         Numbers(50, pipeline=[drop_even])])
    results = {dataset[SeededIndex(3, seed)]['number'] for seed in range(9)}
    assert len(results) > 1 and all(n % 2 for n in results)
    seen.clear()
    first = dataset[SeededIndex(5, 1)]['number']
    path = list(seen)
    seen.clear()
    assert dataset[SeededIndex(5, 1)]['number'] == first and seen == path
    assert path[0] == 2


@pytest.mark.parametrize('index', [4, SeededIndex(4, 0)])
def test_a_source_that_gives_nothing_is_named(index):
    calls = []
    dataset = MultiSourceDataset(
        [Numbers(3), Numbers(3, pipeline=[calls.append])], max_refetch=7)
    with pytest.raises(
            ValueError,
            match='Source 1, a Numbers, gave no sample in 8 tries, the first '
            'with its item 1'):
        dataset[index]
    assert len(calls) == 8


def test_in_test_mode_none_is_an_error_at_once():
    calls = []
    dataset = MultiSourceDataset(
        [Numbers(3, pipeline=[calls.append], test_mode=True)])
    with pytest.raises(ValueError, match='no sample in 1 tries'):
        dataset[0]
    assert len(calls) == 1


def test_a_wrapped_source():
    wrapped = RepeatDataset(Numbers(3), 2)
    dataset = MultiSourceDataset([Numbers(1), wrapped])
    assert [dataset[i]['number'] for i in range(7)] == [0, 0, 1, 2, 0, 1, 2]
    assert dataset.get_data_info(5)['number'] == 1
