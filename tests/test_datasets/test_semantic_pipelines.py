# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The data bases of the semantic configs, on folders in the real layout."""
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

from mmsemi.apis.class_check import check_files
from mmsemi.datasets import make_digits
from mmsemi.models import MultiBranchDataPreprocessor

BASES = Path(__file__).resolve().parents[2] / 'configs/_base_/datasets'
VOC = [f'2007_{i:06d}' for i in range(6)]
CITY = [f'ulm/ulm_{i:06d}_000019' for i in range(6)]
SHAPE = (60, 100)


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(len(path.name))
    cv2.imwrite(str(path), rng.randint(0, 256, (*SHAPE, 3), np.uint8))


def write_mask(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.full(SHAPE, value, np.uint8)
    mask[:5] = 255
    Image.fromarray(mask).save(path)


def write_list(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{line}\n' for line in lines))


def make_voc(root):
    root = root / 'data/VOCdevkit/VOC2012'
    for i in VOC:
        write_image(root / f'JPEGImages/{i}.jpg')
    # Masks of the unlabelled images are not needed.
    for i in VOC[:2]:
        write_mask(root / f'SegmentationClassAug/{i}.png', 20)
    write_mask(root / f'SegmentationClass/{VOC[5]}.png', 3)
    write_list(root / 'splits/blended-cps-1over8.txt', VOC[:2])
    write_list(root / 'splits/blended-cps-1over8-unlabeled.txt', VOC[2:5])
    write_list(root / 'ImageSets/Segmentation/val.txt', VOC[5:])


def make_cityscapes(root):
    root = root / 'data/cityscapes'
    for split, lines in (('train', CITY[:5]), ('val', CITY[5:])):
        for line in lines:
            write_image(root / f'leftImg8bit/{split}/{line}_leftImg8bit.png')
    for split, lines in (('train', CITY[:2]), ('val', CITY[5:])):
        for line in lines:
            write_mask(
                root / f'gtFine/{split}/{line}_gtFine_labelTrainIds.png', 18)
    write_list(root / 'splits/city-cps-1over8.txt', CITY[:2])
    write_list(root / 'splits/city-cps-1over8-unlabeled.txt', CITY[2:5])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('folder')
    make_voc(root)
    make_cityscapes(root)
    make_digits(
        root / 'data/digits',
        num_train=500,
        num_val=3,
        image_size=48,
        digits_per_scene=(1, 2),
        percents=(2, ))
    return root


def first_batch(cfg, loader='train_dataloader', size=None, workers=0):
    options = cfg[loader]
    options.update(num_workers=workers, persistent_workers=False)
    loader = Runner.build_dataloader(options, seed=0)
    check_files(loader.dataset)
    preprocess = MultiBranchDataPreprocessor(
        dict(
            type='mmseg.SegDataPreProcessor',
            mean=[100] * 3,
            std=[50] * 3,
            size=size,
            size_divisor=None if size else 1,
            pad_val=0,
            seg_pad_val=255))
    return loader.dataset, preprocess(next(iter(loader)), True)


def load(name, **changes):
    cfg = Config.fromfile(BASES / f'{name}.py')
    cfg.merge_from_dict(changes)
    return cfg


@pytest.mark.parametrize('name, crop, label', [('voc', 321, 20),
                                               ('cityscapes', 801, 18)])
def test_batches_of_the_published_data(folder, monkeypatch, name, crop, label):
    monkeypatch.chdir(folder)
    cfg = load(f'semi_{name}')
    assert cfg.crop_size == crop
    # The scenes of these tests are smaller than the crop: all are padded.
    dataset, batch = first_batch(cfg, size=(crop, crop))
    assert [len(source) for source in dataset.datasets] == [2, 3]
    inputs, samples = batch['inputs'], batch['data_samples']
    assert set(inputs) == {'sup', 'unsup_teacher', 'unsup_student'}
    for view in inputs:
        assert inputs[view].shape == (2, 3, crop, crop)
    for sample in samples['sup']:
        mask = sample.gt_sem_seg.data[0]
        height, width = sample.img_shape
        assert 30 <= height <= 120 and 50 <= width <= 200
        assert set(mask.unique().tolist()) == {label, 255}
        assert (mask[height:] == 255).all() and (mask[:, width:] == 255).all()
        assert (mask[height // 2, :width] == label).all()
    for weak, strong in zip(samples['unsup_teacher'],
                            samples['unsup_student']):
        assert 'gt_sem_seg' not in weak and 'gt_sem_seg' not in strong
        assert weak.img_shape == strong.img_shape
        assert weak.padding_size == strong.padding_size
        np.testing.assert_array_equal(weak.homography_matrix,
                                      strong.homography_matrix)
        # The matrix is that of the resizing; the crop is shared.
        assert weak.homography_matrix[0, 0] == pytest.approx(
            weak.scale_factor[0])
    # Weak and strong differ in colours only, and not at all in the padding.
    weak, strong = inputs['unsup_teacher'], inputs['unsup_student']
    assert not torch.equal(weak, strong)
    for i, sample in enumerate(samples['unsup_teacher']):
        height, width = sample.img_shape
        assert (weak[i, :, height:] == 0).all()
        assert (strong[i, :, height:] == 0).all()


@pytest.mark.parametrize('name, crop, label', [('voc', 321, 20),
                                               ('cityscapes', 801, 18)])
def test_supervised_and_validation_data(folder, monkeypatch, name, crop,
                                        label):
    monkeypatch.chdir(folder)
    cfg = load(name)
    dataset, batch = first_batch(cfg, size=(crop, crop))
    assert batch['inputs'].shape == (2, 3, crop, crop)
    assert batch['data_samples'][0].gt_sem_seg.data.max() == 255
    assert len(dataset) == 2
    for base in (name, f'semi_{name}'):
        dataset, batch = first_batch(load(base), 'val_dataloader')
        assert len(dataset) == 1
        assert batch['inputs'].shape == (1, 3, *SHAPE)
    semi = load(f'semi_{name}')
    # Both see the labelled images alike.
    assert cfg.labeled_pipeline[:-1] == semi.labeled_pipeline[:-1]
    for field in ('labeled_list', 'test_pipeline', 'val_dataloader',
                  'val_evaluator', 'test_dataloader', 'crop_size'):
        assert cfg[field] == semi[field]


def test_digits(folder, monkeypatch):
    monkeypatch.chdir(folder)
    dataset, batch = first_batch(load('semi_digits_semantic'))
    assert [len(source) for source in dataset.datasets] == [10, 490]
    inputs, samples = batch['inputs'], batch['data_samples']
    for view in ('sup', 'unsup_teacher', 'unsup_student'):
        assert inputs[view].shape == (8, 3, 48, 48)
    masks = torch.stack([s.gt_sem_seg.data for s in samples['sup']])
    assert masks.max() <= 10 and (masks == 0).float().mean() > 0.4
    assert not any('gt_sem_seg' in s for s in samples['unsup_student'])
    dataset, batch = first_batch(load('digits_semantic'))
    assert len(dataset) == 10 and batch['inputs'].shape == (8, 3, 48, 48)
    cfg = load('digits_semantic')
    dataset, batch = first_batch(cfg, 'val_dataloader')
    assert len(dataset) == 3 and batch['inputs'].shape == (3, 3, 48, 48)


def test_digits_augmentation_is_that_of_the_instances():
    semantic, instance = (load(f'semi_digits_{task}')
                          for task in ('semantic', 'instance'))
    assert semantic.strong_color == instance.strong_color
    for key in ('type', 'max_rotate_degree', 'max_translate_ratio',
                'scaling_ratio_range', 'max_shear_degree',
                'img_border_value'):
        assert semantic.geometry[key] == instance.geometry[key]


def test_hidden_masks_may_be_read(folder, monkeypatch):
    monkeypatch.chdir(folder)
    cfg = load('semi_digits_semantic')
    source = cfg.train_dataloader.dataset.datasets[1]
    source.data_prefix.seg_map_path = 'masks/train/'
    source.pipeline.insert(1, dict(type='LoadAnnotations'))
    _, batch = first_batch(cfg)
    sample = batch['data_samples']['unsup_student'][0]
    assert sample.gt_sem_seg.data.shape == (1, 48, 48)


@pytest.mark.parametrize('name', ['voc', 'cityscapes', 'digits_semantic'])
def test_a_config_on_top_changes_lists_crop_and_views(folder, monkeypatch,
                                                      tmp_path, name):
    monkeypatch.chdir(folder)
    text = (BASES / f'semi_{name}.py').read_text()
    # What the comment in the base says, with lists that are there.
    shown = [line[4:] for line in text.split('dataset_type')[0].splitlines()
             if line.startswith('#   ') and '=' in line and '--' not in line]
    if name == 'digits_semantic':
        shown = [
            'unlabeled_dataset = _base_.unlabeled_dataset',
            'views = unlabeled_dataset.pipeline[-1]',
            'views.unsup_student_2 = views.unsup_student',
            'train_dataloader = dict(dataset=dict('
            'datasets=[_base_.labeled_dataset, unlabeled_dataset]))'
        ]
        assert all(line.split(' = ')[0] in text for line in shown)
    else:
        shown = [line for line in shown if 'ann_file' not in line]
    path = tmp_path / 'top.py'
    path.write_text(f'_base_ = {str(BASES / f"semi_{name}.py")!r}\n' +
                    '\n'.join(shown))
    cfg = Config.fromfile(path)
    _, batch = first_batch(cfg, size=(900, 900))
    views = batch['inputs']
    assert list(views) == [
        'sup', 'unsup_teacher', 'unsup_student', 'unsup_student_2'
    ]
    assert not torch.equal(views['unsup_student'], views['unsup_student_2'])
    if name != 'digits_semantic':
        for source in cfg.train_dataloader.dataset.datasets:
            crop, = (t.crop_size for t in source.pipeline
                     if t.type == 'RandomCrop')
            assert crop in (513, 721)


def test_a_folder_of_unlabelled_images(folder, monkeypatch):
    monkeypatch.chdir(folder)
    cfg = load('semi_voc')
    labelled, unlabelled = cfg.train_dataloader.dataset.datasets
    cfg.train_dataloader.dataset.datasets[1] = dict(
        type='mmsemi.UnlabeledImageDataset',
        img_dir='data/VOCdevkit/VOC2012/JPEGImages',
        pipeline=unlabelled.pipeline)
    dataset, batch = first_batch(cfg, size=(321, 321))
    assert len(dataset.datasets[1]) == 6
    assert batch['inputs']['unsup_student'].shape == (2, 3, 321, 321)
    assert dataset.metainfo['classes'][1] == 'aeroplane'


def test_the_config_of_the_manual(folder, monkeypatch, tmp_path):
    """The example in docs/own_data.md, on images of one's own."""
    monkeypatch.chdir(tmp_path)
    text = (BASES.parents[2] / 'docs/own_data.md').read_text()
    example, = [
        part for part in re.findall(r'```python\n(.*?)```', text, re.DOTALL)
        if 'BaseSegDataset' in part
    ]
    lines = '\n'.join(line[4:] for line in example.splitlines())
    (tmp_path / 'top.py').write_text(lines)
    for name in 'abcd':
        write_image(tmp_path / f'my/images/{name}.tif')
    for name in 'ad':
        write_mask(tmp_path / f'my/masks/{name}.png', 2)
    write_list(tmp_path / 'my/splits/train.seed0-fold0@5.txt', 'a')
    write_list(tmp_path / 'my/splits/train.seed0-fold0@5-unlabeled.txt', 'bc')
    write_list(tmp_path / 'my/val.txt', 'd')
    cfg = Config.fromfile(tmp_path / 'top.py')
    dataset, batch = first_batch(cfg, size=(321, 321))
    assert dataset.metainfo['classes'] == ('field', 'road', 'house')
    assert batch['inputs']['unsup_student'].shape == (2, 3, 321, 321)
    dataset, _ = first_batch(cfg, 'val_dataloader')
    assert len(dataset) == 1


def test_a_missing_list_is_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    cfg = load('semi_voc')
    cfg.train_dataloader.dataset.datasets[0].ann_file = 'splits/none.txt'
    with pytest.raises(FileNotFoundError, match='Source 0.*splits/none.txt'):
        first_batch(cfg)
