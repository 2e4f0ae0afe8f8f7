# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""TrashCan, micrographs: their files, their checks, their pipelines."""
import copy
import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS as ROOT_DATASETS

from mmsemi.datasets import (check_instances, known_instances, split_coco,
                             split_coco_k_shot, write_split)
from mmsemi.datasets.trashcan import TRASHCAN_CLASSES, TRASHCAN_TEXTS
from mmsemi.models.text import class_texts
from mmsemi.registry import DATASETS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs/_base_/datasets'
TOOL = ROOT / 'tools/dataset_converters/check_instances.py'


def trashcan(num_images=6, first_image=1):
    """Return content as in instances_train_trashcan.json.

    Image i has an instance of the classes i, i + 1, ... by turns.
    """
    annotations = []
    for i in range(num_images):
        for k in range(22):
            x, y = 5 + 40 * (k % 8), 5 + 40 * (k // 8)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=first_image + i,
                    category_id=(i + k) % 22 + 1,
                    bbox=[float(x), float(y), 30., 30.],
                    area=900.,
                    iscrowd=0,
                    segmentation=[[
                        x, y, x + 30, y, x + 30, y + 30, x, y + 30
                    ]]))
    return dict(
        info=dict(description='TrashCan'),
        licenses=[],
        images=[
            dict(
                id=first_image + i,
                file_name=f'vid_000002_frame{first_image + i:07d}.jpg',
                width=480,
                height=270) for i in range(num_images)
        ],
        annotations=annotations,
        categories=[
            dict(id=i, name=name, supercategory=name)
            for i, name in enumerate(TRASHCAN_CLASSES, 1)
        ])


def write_images(coco, folder):
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for image in coco['images']:
        pixels = rng.randint(0, 255, (image['height'], image['width'], 3))
        cv2.imwrite(
            str(folder / image['file_name']), pixels.astype(np.uint8))


@pytest.fixture(scope='module')
def trashcan_root(tmp_path_factory):
    """Path: A small TrashCan, with a split of one labelled image."""
    root = tmp_path_factory.mktemp('data') / 'trashcan'
    parts = dict(train=trashcan(), val=trashcan(2, 101))
    for part, coco in parts.items():
        write_images(coco, root / part)
        path = root / f'instances_{part}_trashcan.json'
        path.write_text(json.dumps(coco))
    write_split(*split_coco(parts['train'], 20), root / 'semi_anns',
                'instances_train_trashcan.seed0-fold0@10')
    return root


# TrashCan ------------------------------------------------------------------


def test_labels_are_ids_less_one(trashcan_root):
    dataset = DATASETS.build(
        dict(
            type='mmsemi.TrashCanDataset',
            data_root=str(trashcan_root),
            ann_file='instances_val_trashcan.json',
            data_prefix=dict(img='val/')))
    assert len(dataset) == 2
    assert dataset.metainfo['classes'] == TRASHCAN_CLASSES
    assert len(dataset.metainfo['palette']) == len(
        set(dataset.metainfo['palette'])) == 22
    labels = [x['bbox_label'] for x in dataset.get_data_info(1)['instances']]
    assert labels == [(1 + k) % 22 for k in range(22)]


def test_texts_for_prompts():
    assert tuple(TRASHCAN_TEXTS) == TRASHCAN_CLASSES
    texts = class_texts(TRASHCAN_CLASSES, TRASHCAN_TEXTS)
    assert len(set(texts)) == 22
    assert texts[0] == 'remotely operated vehicle'
    assert texts[7] == 'other animal' and texts[16] == 'unknown trash'
    assert not any('animal_' in text or '_' in text for text in texts)


def test_other_files_are_refused(tmp_path):
    config = dict(type='mmsemi.TrashCanDataset', data_root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match='conservancy.umn.edu'):
        DATASETS.build(dict(config, ann_file='missing.json'))
    material = trashcan()
    material['categories'][8]['name'] = 'trash_fabric'
    swapped = trashcan()
    swapped['categories'].reverse()
    for name, coco, message in (
        ('m', material, r'm\.json: .*it lacks trash_clothing'),
        ('s', swapped, 'it has them in the order trash_net')):
        (tmp_path / f'{name}.json').write_text(json.dumps(coco))
        with pytest.raises(ValueError, match=message):
            DATASETS.build(dict(config, ann_file=f'{name}.json'))


def test_k_shot_part():
    labeled, unlabeled = split_coco_k_shot(trashcan(), 2, seed=1)
    counts = np.bincount(
        [ann['category_id'] for ann in labeled['annotations']], minlength=23)
    assert counts[1:].min() == 2
    assert len(labeled['images']) == 2 and len(unlabeled['images']) == 4


# Checks --------------------------------------------------------------------


def check(coco, **options):
    known = known_instances('trashcan')
    return check_instances(coco, known.classes, known.category_ids, **options)


def test_published_numbers():
    known = known_instances('trashcan')
    assert known.num_images == dict(train=6065, val=1147)
    assert list(known.category_ids) == list(range(1, 23))
    coco = known_instances('coco')
    assert len(coco.classes) == len(coco.category_ids) == 80
    assert coco.category_ids[-1] == 90
    assert coco.num_images == dict(train=118287, val=5000)
    with pytest.raises(ValueError, match="'lvis' is not known"):
        known_instances('lvis')


def test_a_right_file_passes(trashcan_root):
    report = check(trashcan(), img_dir=trashcan_root / 'train')
    assert report.errors == report.warnings == []
    assert list(report.counts) == list(TRASHCAN_CLASSES)
    assert set(report.counts.values()) == {6}


def test_another_number_of_images_only_warns():
    report = check(trashcan(), num_images=6065)
    assert report.errors == []
    assert report.warnings == [
        'The file has 6 images; 6065 are reported for this part.'
    ]


def break_file(coco, how):
    first = coco['annotations'][0]
    if how == 'order':
        coco['categories'].reverse()
    elif how == 'name':
        coco['categories'][8]['name'] = 'trash_fabric'
    elif how == 'twice':
        coco['categories'][8]['name'] = 'rov'
    elif how == 'ids':
        for category in coco['categories']:
            category['id'] -= 1
        for annotation in coco['annotations']:
            annotation['category_id'] -= 1
    elif how == 'size':
        coco['images'][0].pop('width')
    elif how == 'box':
        first['bbox'][2] = 0.
    elif how == 'rle':
        first['segmentation'] = dict(size=[480, 270], counts='')
    elif how == 'image':
        coco['images'][0]['file_name'] = 'gone.jpg'
    elif how == 'pixels':
        coco['images'][0]['height'] = 200
    elif how == 'format':
        coco.pop('categories')
    return coco


@pytest.mark.parametrize('how, message', [
    ('order', 'another order: trash_net, trash_rope'),
    ('name', 'missing: trash_clothing; unknown: trash_fabric'),
    ('twice', 'share the name rov'),
    ('ids', 'rov 0 instead of 1, plant 1 instead of 2'),
    ('size', '1 images have no width and height'),
    ('box', '1 annotations have no box'),
    ('rle', "1 annotations have a mask of another size than their image's"),
    ('image', '1 of 6 images are not in .*: gone.jpg'),
    ('pixels', r'0000001.jpg \(480 x 270, noted 480 x 200\)'),
    ('format', 'has no "categories"'),
])
def test_errors_are_named(trashcan_root, how, message):
    report = check(
        break_file(trashcan(), how), img_dir=trashcan_root / 'train')
    assert len(report.errors) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(report.errors[0])


def test_oddities_are_warnings():
    coco = trashcan()
    coco['annotations'][0]['segmentation'] = [[1, 1, 2, 2]]
    coco['annotations'][1]['bbox'][0] = 500.
    coco['annotations'] = [
        ann for ann in coco['annotations'] if ann['category_id'] != 22
    ]
    report = check(coco)
    assert report.errors == []
    none, outside, empty = report.warnings
    assert none.startswith('1 annotations have no mask') and '1.' in none
    assert outside == ('1 annotations have a box outside of their image; '
                       'ids: 2.')
    assert empty == '1 classes have no instance: trash_net.'


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['check_instances.py', *arguments])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_tool(trashcan_root, monkeypatch, capsys, tmp_path):
    train = str(trashcan_root / 'instances_train_trashcan.json')
    val = str(trashcan_root / 'instances_val_trashcan.json')
    images = ['--img-dir', str(trashcan_root / 'train')]
    run_tool(monkeypatch, train, *images, '--dataset', 'trashcan', '--part',
             'train', '--apart-from', val)
    out = capsys.readouterr().out
    assert 'warning: The file has 6 images; 6065 are reported' in out
    assert '6 images, 132 instances of 22 classes, no error.' in out
    with pytest.raises(SystemExit, match='has 2 errors'):
        run_tool(monkeypatch, train, '--classes', 'grain', '--apart-from',
                 train)
    out = capsys.readouterr().out
    assert 'missing: grain; unknown: rov, plant' in out
    assert 'share 6 file names' in out
    with pytest.raises(SystemExit, match='no annotation file'):
        run_tool(monkeypatch, str(tmp_path / 'none.json'))
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, train, '--part', 'val')
    assert '--part needs --dataset' in capsys.readouterr().err


# Configs -------------------------------------------------------------------


def build_train(name, data_root):
    config = Config.fromfile(CONFIGS / f'{name}.py')
    dataset = copy.deepcopy(config.train_dataloader.dataset)
    for source in dataset.datasets:
        source.data_root = str(data_root)
    return config, ROOT_DATASETS.build(dataset)


@pytest.fixture(scope='module')
def micrograph_root(tmp_path_factory):
    """Path: Two labelled micrographs and three others."""
    root = tmp_path_factory.mktemp('data') / 'micrographs'
    coco = trashcan(2)
    coco['categories'] = [dict(id=1, name='grain')]
    for annotation in coco['annotations']:
        annotation['category_id'] = 1
    write_images(coco, root / 'train')
    write_images(trashcan(3), root / 'unlabeled')
    (root / 'annotations').mkdir()
    for part in ('train', 'val'):
        path = root / f'annotations/instances_{part}.json'
        path.write_text(json.dumps(coco))
    return root


@pytest.mark.parametrize('name', ['trashcan', 'micrograph'])
def test_views_of_the_semi_supervised_sets(name, request):
    root = request.getfixturevalue(f'{name}_root')
    _, dataset = build_train(f'semi_{name}_instance', root)
    labelled, unlabelled = dataset.datasets
    assert len(unlabelled) > len(labelled) > 0
    assert unlabelled.metainfo['classes'] == labelled.metainfo['classes']
    item = dataset[0]
    assert item['inputs']['unsup_student'] is None
    found = item['data_samples']['sup'].gt_instances
    assert len(found) == 22 and len(found.masks) == 22
    item = dataset[len(labelled)]
    weak, strong = (item['data_samples'][f'unsup_{part}']
                    for part in ('teacher', 'student'))
    # Colours alone differ: pseudo-masks need no warping.
    for key in ('img_shape', 'ori_shape', 'scale_factor'):
        assert getattr(weak, key) == getattr(strong, key)
    assert np.array_equal(weak.homography_matrix, strong.homography_matrix)
    assert 'gt_instances' not in weak or len(weak.gt_instances) == 0
    assert max(weak.img_shape) <= 853 and min(weak.img_shape) <= 640


@pytest.mark.parametrize('name', ['trashcan', 'micrograph'])
def test_supervised_sets_are_the_labelled_part(name, request):
    root = request.getfixturevalue(f'{name}_root')
    config, dataset = build_train(f'{name}_instance', root)
    semi, _ = build_train(f'semi_{name}_instance', root)
    loader = config.train_dataloader
    assert loader.batch_size == semi.train_dataloader.batch_size == 4
    assert loader.sampler.source_ratio == [1]
    ours, theirs = (copy.deepcopy(c.train_dataloader.dataset.datasets[0])
                    for c in (config, semi))
    ours.pipeline.pop(), theirs.pipeline.pop()
    assert ours == theirs
    assert len(dataset[0]['data_samples'].gt_instances) == 22


def test_micrographs_take_the_classes_of_the_user(micrograph_root, tmp_path):
    """As the text in the template says."""
    config = tmp_path / 'mine.py'
    config.write_text('''
_base_ = '{}'
metainfo = dict(classes=('austenite', 'ferrite'))
labeled_dataset = _base_.labeled_dataset
labeled_dataset.metainfo = metainfo
train_dataloader = dict(
    dataset=dict(datasets=[labeled_dataset, _base_.unlabeled_dataset]))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = val_dataloader
'''.format(CONFIGS / 'semi_micrograph_instance.py'))
    config = Config.fromfile(config)
    classes = ('austenite', 'ferrite')
    labelled, unlabelled = config.train_dataloader.dataset.datasets
    assert labelled.metainfo.classes == classes
    assert 'metainfo' not in unlabelled
    for loader in (config.val_dataloader, config.test_dataloader):
        assert loader.dataset.metainfo.classes == classes
