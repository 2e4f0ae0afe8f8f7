# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import os

import numpy as np
import pytest
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import DefaultScope
from PIL import Image

from mmsemi.datasets import (MultiSourceDataset, MultiSourceSampler,
                             UnlabeledImageDataset)

LOAD = dict(type='mmcv.LoadImageFromFile')


def write_image(path, width=6, height=4, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 7, np.uint8)).save(
        path, **kwargs)


@pytest.fixture
def folder(tmp_path):
    for name in ('b.png', 'a.PNG', 'sub/c.jpg', 'sub/deep/d.bmp'):
        write_image(tmp_path / name)
    (tmp_path / 'notes.txt').write_text('no image')
    write_image(tmp_path / '.hidden.png')
    write_image(tmp_path / '.thumbnails' / 'b.png')
    return tmp_path


def names(dataset, root):
    return [
        os.path.relpath(dataset.get_data_info(i)['img_path'], root)
        for i in range(len(dataset))
    ]


@pytest.mark.parametrize('serialize_data', [True, False])
def test_folder(folder, serialize_data):
    dataset = UnlabeledImageDataset(
        str(folder), serialize_data=serialize_data)
    assert names(dataset, folder) == [
        'a.PNG', 'b.png', 'sub/c.jpg', 'sub/deep/d.bmp'
    ]
    assert dataset.get_data_info(2) == dict(
        img_path=str(folder / 'sub/c.jpg'),
        img_id=2,
        instances=[],
        seg_fields=[],
        sample_idx=2)
    assert dataset.metainfo == {}


def test_folder_options(folder):
    flat = UnlabeledImageDataset(folder, recursive=False)
    assert names(flat, folder) == ['a.PNG', 'b.png']
    png = UnlabeledImageDataset('sub', data_root=str(folder), suffixes='.JPG')
    assert names(png, folder) == ['sub/c.jpg']
    two = UnlabeledImageDataset(str(folder), indices=[3, 0])
    assert names(two, folder) == ['sub/deep/d.bmp', 'a.PNG']
    lazy = UnlabeledImageDataset(str(folder / 'missing'), lazy_init=True)
    with pytest.raises(FileNotFoundError, match='missing'):
        lazy.full_init()


def test_links_are_followed_but_not_round_and_round(folder):
    os.symlink(folder, folder / 'sub' / 'up')
    dataset = UnlabeledImageDataset(str(folder))
    assert len(dataset) == 4
    os.symlink(folder / 'sub', folder / 'sub2')
    os.symlink(folder / 'b.png', folder / 'z.png')
    # A folder that is reached twice counts once, a linked file is a file.
    assert len(UnlabeledImageDataset(str(folder))) == 5


def test_list_file(folder):
    text = '﻿# first the deep one\nsub/deep/d.bmp\n\n  b.png  \n#a.PNG\n'
    (folder / 'list.txt').write_text(
        text + str(folder / 'a.PNG') + '\r\n', encoding='utf-8')
    expected = ['sub/deep/d.bmp', 'b.png', 'a.PNG']
    for kwargs in (dict(img_dir=str(folder),
                        list_file=str(folder / 'list.txt')),
                   dict(list_file='list.txt', data_root=str(folder)),
                   dict(
                       img_dir='.',
                       list_file='list.txt',
                       data_root=str(folder))):
        dataset = UnlabeledImageDataset(**kwargs)
        assert names(dataset, folder) == expected
        assert [dataset.get_data_info(i)['img_id']
                for i in range(3)] == [0, 1, 2]


def test_neither_folder_nor_list():
    with pytest.raises(ValueError, match="img_dir=None and list_file=''"):
        UnlabeledImageDataset(list_file='')


def test_missing_and_empty_sources(folder):
    with pytest.raises(FileNotFoundError, match='no image folder.*nowhere'):
        UnlabeledImageDataset('nowhere', data_root=str(folder))
    with pytest.raises(FileNotFoundError, match='no list file.*none.txt'):
        UnlabeledImageDataset(list_file='none.txt', data_root=str(folder))
    (folder / 'empty').mkdir()
    with pytest.raises(ValueError, match='no image in.*empty or below it'):
        UnlabeledImageDataset(str(folder / 'empty'))
    with pytest.raises(ValueError, match=r'recursive=False.*\.tif'):
        UnlabeledImageDataset(
            str(folder), recursive=False, suffixes=('.tif', ))
    (folder / 'list.txt').write_text('# nothing\n\n')
    with pytest.raises(ValueError, match='list.txt names no image'):
        UnlabeledImageDataset(list_file=str(folder / 'list.txt'))


def test_listed_images_that_do_not_exist(folder):
    lines = ['b.png', 'sub'] + [f'gone{i}.png' for i in range(5)]
    (folder / 'list.txt').write_text('\n'.join(lines))
    with pytest.raises(
            FileNotFoundError,
            match='6 of 7 images in .*list.txt do not exist, among them '
            '.*/sub, .*/gone0.png, .*/gone1.png. Relative'):
        UnlabeledImageDataset(str(folder), str(folder / 'list.txt'))


def test_size_is_read_from_the_header(tmp_path, monkeypatch):
    write_image(tmp_path / 'a.png', 6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / 'b.jpg', 6, 4, exif=exif)
    exif[0x0112] = 3
    write_image(tmp_path / 'c.jpg', 6, 4, exif=exif)
    dataset = UnlabeledImageDataset(str(tmp_path), pipeline=[LOAD])
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, 'load', None)
        sizes = [dataset.get_size(i) for i in range(3)]
    assert sizes == [(6, 4), (4, 6), (6, 4)]
    # The size is that of the image as the pipeline loads it.
    assert [dataset[i]['img_shape'] for i in range(3)
            ] == [(h, w) for w, h in sizes]


def test_sampler_groups_by_these_sizes(tmp_path):
    for i, (width, height) in enumerate([(6, 4), (4, 6), (6, 6)]):
        write_image(tmp_path / f'{i}.png', width, height)
    dataset = MultiSourceDataset([
        UnlabeledImageDataset(tmp_path),
        UnlabeledImageDataset(list_file=_list(tmp_path, '1.png', '0.png'))
    ])
    sampler = MultiSourceSampler(
        dataset, 2, [1, 1], seed=0, group_by_aspect_ratio=True)
    assert sampler.grouped
    stream = iter(sampler)
    pairs = {(int(next(stream)), int(next(stream))) for _ in range(200)}
    assert pairs == {(0, 4), (2, 4), (1, 3)}


def _list(folder, *lines):
    path = folder / 'list.txt'
    path.write_text('\n'.join(str(folder / line) for line in lines))
    return path


@pytest.mark.parametrize('content', [b'', b'no image', b'\x89PNG\r\n\x1a\n'])
def test_a_broken_image_is_named(tmp_path, content):
    write_image(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_bytes(content)
    dataset = UnlabeledImageDataset(str(tmp_path), pipeline=[LOAD])
    assert dataset[0]['img_shape'] == (4, 6)
    text = f'The image {tmp_path}/b.png cannot be read: '
    with pytest.raises(ValueError, match=f'{text}.*Remove it from'):
        dataset[1]
    with pytest.raises(ValueError, match=text):
        dataset.get_size(1)


def test_an_image_that_vanished_is_named(folder):
    dataset = UnlabeledImageDataset(str(folder), pipeline=[LOAD])
    (folder / 'b.png').unlink()
    with pytest.raises(ValueError, match='b.png cannot be read: FileNotFound'):
        dataset[1]


def test_an_error_of_another_transform_stays_what_it_is(folder):

    def fail(results):
        raise KeyError('gt_masks')

    dataset = UnlabeledImageDataset(str(folder), pipeline=[LOAD, fail])
    with pytest.raises(KeyError, match='gt_masks'):
        dataset[0]


def test_refetch_is_bounded(folder):
    calls = []
    dataset = UnlabeledImageDataset(
        str(folder), pipeline=[lambda r: calls.append(r)], max_refetch=3)
    with pytest.raises(Exception, match='valid image after 3'):
        dataset[0]
    assert len(calls) == 4


def test_mmseg_fields_come_from_the_metainfo(folder):
    dataset = UnlabeledImageDataset(
        str(folder),
        metainfo=dict(
            classes=('a', ), label_map={1: 0}, reduce_zero_label=True))
    info = dataset.get_data_info(0)
    assert info['label_map'] == {1: 0} and info['reduce_zero_label'] is True


@pytest.mark.parametrize('annotations', [
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='LoadEmptyAnnotations', with_bbox=True, with_mask=True),
])
def test_mmdets_pipeline_accepts_it(folder, annotations):
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = ROOT_DATASETS.build(
            dict(
                type='mmsemi.UnlabeledImageDataset',
                img_dir=str(folder),
                metainfo=dict(classes=('a', 'b')),
                pipeline=[
                    dict(type='LoadImageFromFile'), annotations,
                    dict(type='Resize', scale=(12, 8), keep_ratio=True),
                    dict(type='RandomFlip', prob=1.),
                    dict(type='PackDetInputs')
                ]))
        assert type(dataset) is UnlabeledImageDataset
        packed = dataset[2]
    sample = packed['data_samples']
    assert packed['inputs'].shape == (3, 8, 12)
    assert len(sample.gt_instances) == 0 and sample.img_id == 2
    assert sample.gt_instances.bboxes.shape == (0, 4)
    assert sample.img_path == str(folder / 'sub/c.jpg')
