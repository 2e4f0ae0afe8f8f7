# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import hashlib
import re

import numpy as np
import pytest
from PIL import Image

from mmsemi.datasets import (KNOWN_SPLITS, KnownSplit, classes_in_masks,
                             convert_split, find_pairs, identify_split,
                             missing_files, mmseg_lines, read_mask,
                             read_split_list, set_hash, split_by_classes,
                             write_lists)
from mmsemi.datasets.known_splits import TRAIN_SIZES, same_size
from mmsemi.datasets.semantic_sampling import (class_shares, new_split_stem,
                                               read_names)
from mmsemi.datasets.semantic_splits import SemanticSplit

VOC = [f'2007_{i:06d}' for i in range(30)]
CITY = [f'ulm_{i:06d}_000019' for i in range(6)] + ['bochum_000000_001097']


def unimatch_voc(ids):
    return '\n'.join(
        f'JPEGImages/{i}.jpg SegmentationClass/{i}.png' for i in ids)


def unimatch_city(ids):
    return '\n'.join(
        f'leftImg8bit/train/{i.split("_")[0]}/{i}_leftImg8bit.png '
        f'gtFine/train/{i.split("_")[0]}/{i}_gtFine_labelTrainIds.png'
        for i in ids)


def u2pl_city(ids):
    return '\n'.join(
        f'leftImg8bit/train/{i.split("_")[0]}/{i}_leftImg8bit.png'
        for i in ids) + '\n'


def cps_city(ids):
    return '\n'.join(
        f'/images/train/{i}.png\t/segmentation/train/{i}_gtFine.png'
        for i in ids) + '\n'


@pytest.fixture
def write(tmp_path):

    def write_list(name, text):
        path = tmp_path / name
        if not isinstance(text, (str, bytes)):
            text = '\n'.join(text) + '\n'
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_list


@pytest.fixture
def known(monkeypatch):
    """Give the first five images of each data set a place in the table."""
    for dataset, ids in (('voc', VOC), ('cityscapes', CITY)):
        split = KnownSplit(dataset, 'original', '1/8', 5)
        monkeypatch.setitem(KNOWN_SPLITS, set_hash(ids[:5]), split)
        # All other images of these tests are the unlabelled ones.
        monkeypatch.setitem(TRAIN_SIZES, dataset, len(ids))


# Reading and recognising --------------------------------------------------


@pytest.mark.parametrize('text, dataset, ids', [
    (unimatch_voc(VOC), 'voc', VOC),
    (unimatch_voc(VOC) + '\n', 'voc', VOC),
    ('\n'.join(VOC), 'voc', VOC),
    ('\r\n'.join(VOC) + '\r\n', 'voc', VOC),
    ('\ufeff' + '\n'.join(VOC), 'voc', VOC),
    (unimatch_city(CITY), 'cityscapes', CITY),
    (u2pl_city(CITY), 'cityscapes', CITY),
    (cps_city(CITY), 'cityscapes', CITY),
    ('\n'.join(mmseg_lines('cityscapes', CITY)), 'cityscapes', CITY),
    ('leftImg8bit\\train\\ulm\\ulm_000000_000019_leftImg8bit.png',
     'cityscapes', CITY[:1]),
])
def test_published_formats(write, text, dataset, ids):
    found = read_split_list(write('labeled.txt', text))
    assert (found.dataset, found.ids) == (dataset, ids)


@pytest.mark.parametrize('text, message', [
    ('', 'is empty'),
    ('\n'.join(VOC[:2]) + '\n\n', '1 blank lines, the first is line 3'),
    ('2007_000001\n \n2007_000002', '1 blank lines, the first is line 2'),
    ('2007_000001\ncats/a.jpg', "line 2: 'cats/a.jpg' names no image"),
    ('2007_000001\n2007_000001', 'lists 1 images more than once: 2007_000001'),
    ('2007_000001\nulm_000000_000019', 'mixes images'),
    ('JPEGImages/2007_000001.jpg SegmentationClass/2007_000002.png',
     'line 1: .*mask of another one'),
    (b'\x80\x03cnumpy\n\xff', 'is no text file.*pickled'),
])
def test_wrong_lists(write, text, message):
    with pytest.raises(ValueError, match=f'labeled.txt.*{message}'):
        read_split_list(write('labeled.txt', text))


def test_missing_list(tmp_path):
    with pytest.raises(FileNotFoundError, match='no list file .*none.txt'):
        read_split_list(tmp_path / 'none.txt')


def test_hash_is_of_the_set():
    digest = hashlib.sha256(b'2007_000000\n2007_000001').hexdigest()[:12]
    assert set_hash(['2007_000001', '2007_000000']) == digest


def test_table_of_published_splits():
    assert len(KNOWN_SPLITS) == 30
    assert all(re.fullmatch('[0-9a-f]{12}', key) for key in KNOWN_SPLITS)
    assert len({split.stem for split in KNOWN_SPLITS.values()}) == 29
    found = {(s.dataset, s.protocol, s.fraction): (s.labeled, s.unlabeled)
             for s in KNOWN_SPLITS.values()}
    assert found['voc', 'original', '1/16'] == (92, 10490)
    assert found['voc', 'original', 'full'] == (1464, 9118)
    assert found['voc', 'blended-cps', '1/4'] == (2646, 7936)
    assert found['voc', 'priority-u2pl', '1/2'] == (5291, 5291)
    assert found['cityscapes', 'city-cps', '1/2'] == (1488, 1487)
    assert found['cityscapes', 'city-1_30', '1/30'] == (100, 2875)
    assert found['cityscapes', 'city-eln', '1/8'] == (371, 2604)
    assert [str(s) for s in same_size('voc', 732)
            ] == ['original 1/2', 'original 1/2 (tss)']
    stems = {split.stem for split in KNOWN_SPLITS.values()}
    assert {
        'original-1over16', 'original-full', 'original-1over2-tss',
        'blended-pixelssl-1over16-split2', 'city-1_30', 'city-u2pl-1over4'
    } < stems


def test_identify(known):
    assert str(identify_split(reversed(VOC[:5]))) == 'original 1/8'
    assert identify_split(VOC[:6]) is None


# Converting ---------------------------------------------------------------


def test_unlabelled_images_are_the_rest(write, known, recwarn):
    split = convert_split(
        write('l.txt', unimatch_voc(VOC[:5])), train=write('t.txt', VOC[::-1]))
    assert split.labeled == VOC[:5]
    assert split.unlabeled == VOC[:4:-1]
    assert split.known.stem == 'original-1over8'
    same = convert_split(
        write('l.txt', VOC[:5]), write('u.txt', unimatch_voc(VOC[5:])))
    assert sorted(same.unlabeled) == sorted(split.unlabeled)
    assert convert_split(write('l.txt', VOC[:5])).unlabeled == []
    assert not recwarn


def test_unknown_lists_are_warned_of(write, known):
    with pytest.warns(
            UserWarning,
            match=f'hash {set_hash(VOC[1:6])}.*5 images, as many as original '
            '1/8, but not the same ones'):
        split = convert_split(write('l.txt', VOC[1:6]))
    assert split.known is None
    with pytest.warns(
            UserWarning, match='goes with 25 unlabelled images, not with 3'):
        convert_split(write('l.txt', VOC[:5]), write('u.txt', VOC[5:8]))


def test_overlaps_are_refused(write, known):
    labeled = write('l.txt', VOC[:5])
    with pytest.raises(
            ValueError,
            match='The labelled and the unlabelled list share 2 images: '
            '2007_000003, 2007_000004. If .* give the train list'):
        convert_split(labeled, write('u.txt', VOC[3:9]))
    with pytest.raises(
            ValueError,
            match='labelled and the validation list share 5 images'):
        convert_split(labeled, val=write('v.txt', VOC))
    with pytest.raises(
            ValueError,
            match='unlabelled and the validation list share 7 images.* and 2 '
            r'more\.$'):
        convert_split(
            labeled, train=write('t.txt', VOC), val=write('v.txt', VOC[23:]))
    with pytest.raises(
            ValueError, match='3 images of the labelled.*train_aug'):
        convert_split(labeled, train=write('t.txt', VOC[3:]))
    with pytest.raises(ValueError, match='1 images of the unlabelled list'):
        convert_split(
            labeled, write('u.txt', VOC[6:8]), write('t.txt', VOC[:7]))
    with pytest.raises(ValueError, match='Pascal VOC, .*those of Cityscapes'):
        convert_split(labeled, write('u.txt', CITY))


def test_validation_lists_are_not_trained_on(write, monkeypatch):
    monkeypatch.setitem(KNOWN_SPLITS, set_hash(VOC),
                        KnownSplit('voc', 'val', 'full', len(VOC)))
    with pytest.raises(ValueError, match='is the official validation list'):
        convert_split(write('l.txt', VOC))


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')


def test_missing_voc_files(tmp_path):
    split = SemanticSplit('voc', VOC[:2], VOC[2:4], None)
    touch(*[tmp_path / f'JPEGImages/{i}.jpg' for i in VOC[:3]])
    touch(tmp_path / f'SegmentationClass/{VOC[0]}.png')
    touch(tmp_path / f'SegmentationClass/{VOC[1]}.png')
    images, masks = missing_files(split, tmp_path)
    assert '1 of 2 unlabelled images do not exist' in images
    assert f'{VOC[3]}.jpg' in images
    assert '2 of 2 masks of labelled images' in masks
    assert '2,913' in masks and 'SegmentationClassAug' in masks
    touch(tmp_path / f'JPEGImages/{VOC[3]}.jpg')
    assert missing_files(split, tmp_path, 'SegmentationClass') == []


def test_missing_city_files(tmp_path):
    split = SemanticSplit('cityscapes', CITY[:1], CITY[-1:], None)
    for line in mmseg_lines('cityscapes', CITY):
        touch(tmp_path / f'leftImg8bit/train/{line}_leftImg8bit.png')
        touch(tmp_path / f'gtFine/train/{line}_gtFine_labelIds.png')
    problem, = missing_files(split, tmp_path)
    assert '1 of 1 masks' in problem and 'cityscapes.py' in problem
    touch(tmp_path /
          'gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png')
    assert missing_files(split, tmp_path) == []


def test_written_lists(tmp_path):
    paths = write_lists(['b', 'a'], ['c'], tmp_path / 'new', 'x')
    assert [p.name for p in paths] == ['x.txt', 'x-unlabeled.txt']
    assert [p.read_bytes() for p in paths] == [b'b\na\n', b'c\n']
    # The same again is fine, something else is not.
    write_lists(['b', 'a'], ['c'], tmp_path / 'new', 'x')
    with pytest.raises(FileExistsError, match='x-unlabeled.txt exists'):
        write_lists(['b', 'a'], ['d'], tmp_path / 'new', 'x')
    assert paths[1].read_text() == 'c\n'
    write_lists(['b'], ['d'], tmp_path / 'new', 'x', overwrite=True)
    assert paths[0].read_text() == 'b\n'
    assert write_lists(['b'], None, tmp_path, 'y') == (tmp_path / 'y.txt', )
    assert sorted(p.name for p in tmp_path.iterdir()) == ['new', 'y.txt']
    for lists, message in (((['a', ''], []), 'blank name'),
                           ((['a'], ['b', 'b']), 'name twice'),
                           ((['a'], ['a']), 'share 1 images: a')):
        with pytest.raises(ValueError, match=message):
            write_lists(*lists, tmp_path, 'z')


# New splits ---------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """40 images: class 1 everywhere, class 2 in ten, class 3 in one."""
    for i in range(40):
        name = f'{"ab"[i % 2]}/{i:02d}'
        touch(tmp_path / f'img/{name}_raw.png', tmp_path / f'ann/{name}.png')
        mask = np.full((2, 2), 255, np.uint8)
        mask[0, 0] = 1
        mask[0, 1] = 2 if i % 4 == 0 else 1
        mask[1, 0] = 3 if i == 17 else 1
        Image.fromarray(mask).save(tmp_path / f'ann/{name}.png')
    return tmp_path


def scan(folder):
    names = find_pairs(folder / 'img', folder / 'ann', '_raw.png')
    return classes_in_masks(folder / 'ann', names)


def test_every_class_is_kept(folder):
    classes = scan(folder)
    assert len(classes) == 40 and list(classes)[0] == 'a/00'
    assert classes['a/00'] == [1, 2] and classes['b/17'] == [1, 3]
    for seed in range(5):
        labeled, unlabeled = split_by_classes(classes, percent=5, seed=seed)
        assert len(labeled) == 2 and len(unlabeled) == 38
        assert sorted(labeled + unlabeled) == list(classes)
        shares = class_shares(classes, labeled)
        assert shares[3] == 1 and shares[2] == 1 and shares[1] == 2
    parts = {
        tuple(
            split_by_classes(
                classes, percent=5, seed=s, keep_all_classes=False)[0])
        for s in range(8)
    }
    assert len(parts) > 1 and any('b/17' not in part for part in parts)


def test_counts_and_percentages_agree(folder):
    classes = scan(folder)
    small = split_by_classes(classes, count=10, seed=3)
    assert small == split_by_classes(classes, percent=25, seed=3)
    assert small != split_by_classes(classes, percent=25, seed=4)
    assert small != split_by_classes(classes, percent=25, seed=3, fold=1)
    for count in range(2, 40):
        assert len(split_by_classes(classes, count=count)[0]) == count


@pytest.mark.parametrize('options, message', [
    (dict(percent=1), 'percent=1 of 40 images is less than one image'),
    (dict(percent=0), 'percent must be more than 0'),
    (dict(percent=99.9), 'labels all of them'),
    (dict(count=0), 'count must be at least 1 and below the 40 images'),
    (dict(count=40), 'below the 40 images that there are, got 40'),
    (dict(count=1), r'count=1 labels 1 of 40 images, too few to hold all 3 '
     r'classes; 2 images do\. Raise count'),
    (dict(), 'either percent or count'),
    (dict(percent=5, count=2), 'either percent or count'),
])
def test_sizes_that_cannot_be(folder, options, message):
    with pytest.raises(ValueError, match=message):
        split_by_classes(scan(folder), **options)


def test_folders_that_do_not_fit(folder):
    img, ann = folder / 'img', folder / 'ann'
    with pytest.raises(FileNotFoundError, match='no folder .*masks'):
        find_pairs(img, folder / 'masks')
    with pytest.raises(ValueError, match="ends with '.jpg'"):
        find_pairs(img, ann)
    with pytest.raises(FileNotFoundError, match='40 of 40 masks.*unlabelled'):
        find_pairs(img, ann, '.png')
    with pytest.raises(FileNotFoundError, match='1 of 2 images.*c/x_raw.png'):
        find_pairs(img, ann, '_raw.png', names=['a/00', 'c/x'])
    with pytest.raises(ValueError, match='No mask holds a class'):
        split_by_classes({'a': [], 'b': []}, count=1)


def test_masks_are_read_as_mmseg_reads_them(tmp_path):
    path = tmp_path / 'a.png'
    palette = Image.fromarray(np.array([[0, 5]], np.uint8))
    palette.putpalette([7] * 768)
    palette.save(path)
    assert read_mask(path).tolist() == [[0, 5]]
    Image.fromarray(np.array([[True, False]])).save(path)
    assert read_mask(path).tolist() == [[1, 0]]
    Image.new('RGB', (2, 1)).save(path)
    with pytest.raises(ValueError, match='colour picture'):
        read_mask(path)
    Image.fromarray(np.zeros((1, 2), np.float32)).save(tmp_path / 'a.tif')
    with pytest.raises(ValueError, match='floating-point'):
        read_mask(tmp_path / 'a.tif')


def test_names_of_new_splits():
    assert new_split_stem(2.5, None, 0, 1) == 'train.seed0-fold1@2.5'
    assert new_split_stem(None, 12, 3, 0, 'rs') == 'rs.seed3-fold0@12images'


def test_lists_of_names(write):
    assert read_names(write('a.txt', 'x/1\ny 2\r\n')) == ['x/1', 'y 2']
    for text, message in (('', 'is empty'), ('a\n\nb', 'Line 2 .* blank'),
                          ('a\na', 'lists a more than once')):
        with pytest.raises(ValueError, match=message):
            read_names(write('a.txt', text))
