# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import re
import warnings

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset, CityscapesDataset
from PIL import Image

from mmsemi.datasets import MultiSourceDataset, check_semantic_dataset
from mmsemi.datasets.semantic_checks import as_loaded, spread

CLASSES = ('ground', 'road', 'house')


class Named(BaseSegDataset):
    METAINFO = dict(classes=CLASSES, palette=[[0] * 3, [1] * 3, [2] * 3])


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@pytest.fixture
def folder(tmp_path):
    """Three images of 4 x 6 pixels with masks of all classes and 255."""
    for name in 'abc':
        write_image(tmp_path, name)
        write_mask(tmp_path, name, [[0, 1, 2, 255, 0, 1]] * 4)
    return tmp_path


def write_image(folder, name, shape=(4, 6)):
    path = folder / f'img/{name}.jpg'
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), np.zeros((*shape, 3), np.uint8))


def write_mask(folder, name, values, mode=None):
    path = folder / f'ann/{name}.png'
    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(np.array(values, np.uint8))
    if mode == 'P':
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(path)


def dataset(folder, lines=None, cls=BaseSegDataset, **options):
    if lines is not None:
        (folder / 'list.txt').write_text(lines)
        options['ann_file'] = 'list.txt'
    options.setdefault('metainfo', dict(classes=CLASSES))
    options.setdefault('data_prefix',
                       dict(img_path='img', seg_map_path='ann'))
    return cls(data_root=str(folder), **options)


def test_good_data_pass_in_silence(folder):
    write_mask(folder, 'a', [[0, 1, 2, 2, 2, 1]] * 4, mode='P')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_semantic_dataset(dataset(folder))
        check_semantic_dataset(dataset(folder, 'a\nb\n'), 0)
        # No classes, nothing to compare with.
        check_semantic_dataset(dataset(folder, metainfo={}))


def test_values_outside_the_classes(folder):
    write_mask(folder, 'b', [[0, 1, 7, 255, 38, 9]] * 4)
    with pytest.raises(
            ValueError,
            match=r'b\.png holds the values 7, 9, 38, but the 3 classes allow '
            r"0 to 2, and 255 for ignored pixels\. .*mode 'P'"):
        check_semantic_dataset(dataset(folder))
    # Another number of images: the sample holds the first and the last.
    check_semantic_dataset(dataset(folder), num_images=2)


def test_classes_that_count_from_one(folder):
    write_mask(folder, 'c', [[1, 2, 3, 0, 255, 1]] * 4)
    with pytest.raises(ValueError, match='value 3, .*reduce_zero_label=True'):
        check_semantic_dataset(dataset(folder))
    check_semantic_dataset(dataset(folder, reduce_zero_label=True))
    write_mask(folder, 'c', [[1, 2, 4, 0, 255, 1]] * 4)
    with pytest.raises(
            ValueError,
            match='value 4, but with reduce_zero_label=True the 3 classes '
            'are 1 to 3 and 0 is ignored'):
        check_semantic_dataset(dataset(folder, reduce_zero_label=True))


def test_some_of_the_classes(folder):
    some = dict(cls=Named, metainfo=dict(classes=('house', )))
    check_semantic_dataset(dataset(folder, **some))
    write_mask(folder, 'a', [[0, 1, 3, 0, 0, 1]] * 4)
    with pytest.raises(
            ValueError, match='value 3, but the classes in the file are 0 to '
            r'2 \(metainfo picks 1 of them\)'):
        check_semantic_dataset(dataset(folder, **some))


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 255, 1: 1, 2: 0}])
def test_values_are_taken_as_mmseg_loads_them(tmp_path, reduce_zero_label,
                                              label_map):
    from mmseg.datasets.transforms import LoadAnnotations
    values = np.arange(256, dtype=np.uint8)[None]
    Image.fromarray(values).save(tmp_path / 'a.png')
    loaded = LoadAnnotations()(
        dict(
            seg_map_path=str(tmp_path / 'a.png'),
            seg_fields=[],
            reduce_zero_label=reduce_zero_label,
            label_map=label_map))['gt_seg_map']
    np.testing.assert_array_equal(
        as_loaded(values[0].astype(int), reduce_zero_label, label_map),
        loaded.reshape(-1))


def test_pictures_instead_of_masks(folder):
    write_mask(folder, 'c', np.zeros((4, 6, 3)))
    with pytest.raises(ValueError, match=r'c\.png is a colour picture .mode '
                       r'RGB.*palette \(mode P\)'):
        check_semantic_dataset(dataset(folder))
    (folder / 'ann/c.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'c\.png cannot be read'):
        check_semantic_dataset(dataset(folder))
    Image.fromarray(np.full((4, 6), 24001, np.uint16)).save(folder /
                                                            'ann/c.png')
    with pytest.raises(ValueError, match='value 24001.*map of instances'):
        check_semantic_dataset(dataset(folder))


def test_other_size_than_the_image(folder):
    write_mask(folder, 'b', np.zeros((6, 4)))
    with pytest.raises(
            ValueError,
            match=r'b\.png has 4 x 6 pixels .*b\.jpg has 6 x 4'):
        check_semantic_dataset(dataset(folder))


def test_missing_files(folder):
    with pytest.raises(
            FileNotFoundError,
            match=r'list\.txt: 2 of 4 images do not exist.*img.x\.jpg'):
        check_semantic_dataset(dataset(folder, 'a\nx\nb\ny\n'))
    (folder / 'ann/b.png').unlink()
    # Any missing file counts, not only those of the sample.
    with pytest.raises(FileNotFoundError, match='1 of 3 masks.*seg_map_suf'):
        check_semantic_dataset(dataset(folder), num_images=1)
    # Unlabelled images need no masks.
    check_semantic_dataset(
        dataset(folder, data_prefix=dict(img_path='img')))
    with pytest.raises(FileNotFoundError, match='list has a blank line'):
        check_semantic_dataset(dataset(folder, 'a\n\nc\n'))


def test_the_official_masks_of_voc(folder):
    (folder / 'ann').rename(folder / 'SegmentationClass')
    (folder / 'SegmentationClass/a.png').unlink()
    with pytest.raises(FileNotFoundError, match='2,913.*SegmentationClassAug'):
        check_semantic_dataset(
            dataset(
                folder,
                data_prefix=dict(
                    img_path='img', seg_map_path='SegmentationClass')))


def test_ids_instead_of_train_ids(tmp_path):
    name = 'aachen/aachen_000000_000019'
    for folder, suffix, value in (
        ('img', '_leftImg8bit.png', np.zeros((4, 6, 3), np.uint8)),
        ('ann', '_gtFine_labelTrainIds.png', np.full((4, 6), 26, np.uint8))):
        path = tmp_path / folder / f'{name}{suffix}'
        path.parent.mkdir(parents=True)
        Image.fromarray(value).save(path)
    with pytest.raises(ValueError, match='value 26.*cityscapes.py'):
        check_semantic_dataset(
            dataset(tmp_path, cls=CityscapesDataset, metainfo=None))


def test_nothing_at_all(folder):
    empty = dataset(folder, '', lazy_init=True)
    with pytest.raises(ValueError, match=r'list\.txt is empty: .*ann_file'):
        check_semantic_dataset(empty)
    wrong = dataset(folder, img_suffix='.tif', lazy_init=True)
    with pytest.raises(ValueError, match="ends with '.tif' .img_suffix"):
        check_semantic_dataset(wrong)
    with pytest.raises(TypeError, match='BaseSegDataset, got list'):
        check_semantic_dataset([])
    with pytest.raises(ValueError, match='num_images must be 0'):
        check_semantic_dataset(dataset(folder), -1)


def test_a_missing_or_empty_list_as_a_source(folder):
    options = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        metainfo=dict(classes=CLASSES))
    path = re.escape(str(folder / 'none.txt'))
    with pytest.raises(FileNotFoundError, match=f'Source 0 .*no {path}'):
        MultiSourceDataset([dict(options, ann_file='none.txt')])
    # mmseg's own assertion has no text here.
    with pytest.raises(FileNotFoundError, match=f'Source 0 .*no {path}'):
        MultiSourceDataset(
            [dict(
                options,
                type='PascalVOCDataset',
                metainfo=None,
                ann_file='none.txt')])
    (folder / 'empty.txt').write_text('')
    with pytest.raises(ValueError, match='Source 0 .* is empty. Check ann_f'):
        MultiSourceDataset([dict(options, ann_file='empty.txt')])


def test_foreground_of_255_is_warned_of(folder):
    for name in 'abc':
        write_mask(folder, name, [[0, 0, 0, 255, 255, 0]] * 4)
    with pytest.warns(UserWarning, match='only the values 0 and 255'):
        check_semantic_dataset(dataset(folder))


def test_images_turned_by_exif(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (4, 6)).save(folder / 'img/a.jpg', exif=exif)
    check_semantic_dataset(dataset(folder))


@pytest.mark.parametrize('number, wanted, expected', [
    (5, 0, [0, 1, 2, 3, 4]),
    (5, 9, [0, 1, 2, 3, 4]),
    (5, 3, [0, 2, 4]),
    (5, 1, [0]),
    (0, 3, []),
])
def test_spread(number, wanted, expected):
    assert spread(number, wanted) == expected
