# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""LVIS v1 without the package ``lvis``."""
import json
import sys

import cv2
import numpy as np
import pytest
from mmdet.datasets import LVISV1Dataset
from mmengine.dataset import ClassBalancedDataset

from mmsemi.datasets import LVISV1FederatedDataset
from mmsemi.registry import DATASETS

CLASSES = ('ant', 'bee', 'cow', 'dog')
IDS = (3, 4, 7, 9)
FREQUENCIES = 'rcff'
META = ('img_id', 'neg_category_ids', 'not_exhaustive_category_ids')


def content():
    """Image 12 has an ant, no dog, and more bees than the annotated one."""
    url = 'http://images.cocodataset.org/'
    images = [
        dict(
            id=12,
            coco_url=f'{url}train2017/000000000012.jpg',
            neg_category_ids=[9],
            not_exhaustive_category_ids=[4]),
        dict(
            id=5,
            coco_url=f'{url}val2017/000000000005.jpg',
            neg_category_ids=[7, 3],
            not_exhaustive_category_ids=[])
    ]
    boxes = {1: (12, 3), 2: (12, 4), 3: (5, 9)}
    return dict(
        images=[dict(image, width=40, height=30) for image in images],
        categories=[
            dict(id=i, name=name, frequency=letter)
            for i, name, letter in zip(IDS, CLASSES, FREQUENCIES)
        ],
        annotations=[
            dict(
                id=number,
                image_id=image,
                category_id=category,
                bbox=[4., 4., 10., 8.],
                area=80.,
                segmentation=[[4, 4, 14, 4, 14, 12, 4, 12]])
            for number, (image, category) in boxes.items()
        ])


@pytest.fixture
def write(tmp_path):

    def write_content(annotations=None):
        path = tmp_path / 'lvis.json'
        path.write_text(json.dumps(annotations or content()))
        return dict(
            type='mmsemi.LVISV1FederatedDataset',
            data_root=str(tmp_path),
            ann_file='lvis.json',
            data_prefix=dict(img=''),
            metainfo=dict(classes=CLASSES))

    return write_content


def test_images_say_what_they_were_searched_for(write, tmp_path):
    dataset = DATASETS.build(write())
    assert isinstance(dataset, LVISV1Dataset) and 'lvis' not in sys.modules
    first, second = dataset[0], dataset[1]
    assert first['img_path'] == str(tmp_path / 'train2017/000000000012.jpg')
    assert second['img_path'] == str(tmp_path / 'val2017/000000000005.jpg')
    assert [i['bbox_label'] for i in first['instances']] == [0, 1]
    assert first['instances'][0]['bbox'] == [4, 4, 14, 12]
    assert first['neg_category_ids'] == [3]
    assert first['not_exhaustive_category_ids'] == [1]
    assert second['neg_category_ids'] == [2, 0]
    assert second['not_exhaustive_category_ids'] == []
    assert dataset.metainfo['frequency'] == tuple(FREQUENCIES)


def test_some_classes_have_labels_of_their_own(write):
    config = write()
    config['metainfo'] = dict(classes=('bee', 'dog'))
    dataset = DATASETS.build(config)
    assert [i['bbox_label'] for i in dataset[0]['instances']] == [0]
    assert dataset[0]['neg_category_ids'] == [1]
    assert dataset[1]['neg_category_ids'] == []
    assert dataset.metainfo['frequency'] == ('c', 'f')


def test_pipeline_hands_them_on(write, tmp_path):
    config = write()
    for folder, name in (('train2017', 12), ('val2017', 5)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(
            str(tmp_path / folder / f'{name:012d}.jpg'),
            np.zeros((30, 40, 3), np.uint8))
    config['pipeline'] = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='mmsemi.PackDetInputs', meta_keys=META)
    ]
    sample = DATASETS.build(config)[0]['data_samples']
    assert sample.neg_category_ids == [3]
    assert sample.not_exhaustive_category_ids == [1]
    assert sample.gt_instances.masks.masks.sum(axis=(1, 2)).tolist() == [80
                                                                         ] * 2


def test_empty_images_go_and_rare_classes_come_more_often(write):
    annotations = content()
    annotations['annotations'].pop()
    config = write(annotations)
    config['filter_cfg'] = dict(filter_empty_gt=True, min_size=32)
    # 30 pixels high.
    with pytest.raises(ValueError):
        DATASETS.build(config)
    config['filter_cfg'] = dict(filter_empty_gt=True)
    assert [DATASETS.build(config)[i]['img_id'] for i in range(1)] == [12]
    assert len(DATASETS.build(config)) == 1
    # Every class is in one of two images: sqrt(2 / 0.5) = 2.
    balanced = ClassBalancedDataset(DATASETS.build(write()), 2.)
    assert [balanced[i]['img_id'] for i in range(len(balanced))
            ] == [12, 12, 5, 5]
    assert balanced.metainfo['frequency'] == tuple(FREQUENCIES)


def test_classes_of_lvis_are_the_default(write):
    config = write()
    del config['metainfo']
    with pytest.raises(ValueError, match='no category of 1201 of the 1203'):
        DATASETS.build(config)
    assert len(LVISV1FederatedDataset.METAINFO['classes']) == 1203


def test_other_files_are_refused(write):
    config = write()
    with pytest.raises(FileNotFoundError, match='lvisdataset.org'):
        DATASETS.build(dict(config, ann_file='missing.json'))
    with pytest.raises(ValueError, match='order of the categories'):
        DATASETS.build(
            dict(config, metainfo=dict(classes=('bee', 'ant', 'cow', 'dog'))))
    for part, field in (('images', 'coco_url'),
                        ('images', 'neg_category_ids'),
                        ('categories', 'frequency'), ('annotations', 'area')):
        annotations = content()
        del annotations[part][1][field]
        with pytest.raises(ValueError, match=f'"{part}" .* lacks {field}'):
            DATASETS.build(write(annotations))
    annotations = content()
    del annotations['annotations']
    with pytest.raises(ValueError, match='no list "annotations"'):
        DATASETS.build(write(annotations))
    annotations = content()
    annotations['categories'][0]['frequency'] = 'x'
    with pytest.raises(ValueError, match='frequency x'):
        DATASETS.build(write(annotations))
