# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest

from mmsemi.datasets.calibration_split import (first_half, halve_images,
                                               hash_order, hold_out_images,
                                               missing_classes, write_parts)
from mmsemi.datasets.splits import load_coco

TOOL = Path(__file__).parents[2] / 'tools/dataset_converters/split_coco.py'


def make_coco(classes_per_image, num_classes=None):
    """Build a COCO dict from one list of class ids per image, ids from 0."""
    num_classes = num_classes or max(c for i in classes_per_image for c in i)
    coco = dict(
        info=dict(version='1'),
        categories=[
            dict(id=c, name=f'class{c}') for c in range(1, num_classes + 1)
        ],
        images=[
            dict(id=i, file_name=f'{i}.jpg', width=8, height=6)
            for i in range(len(classes_per_image))
        ],
        annotations=[])
    for i, image in enumerate(classes_per_image):
        for c in image:
            coco['annotations'].append(
                dict(
                    id=len(coco['annotations']),
                    image_id=i,
                    category_id=c,
                    bbox=[0, 0, 2, 2],
                    area=4,
                    iscrowd=0))
    return coco


def ids(part):
    return [img['id'] for img in part['images']]


def images_with(part, class_id):
    return {
        ann['image_id']
        for ann in part['annotations'] if ann['category_id'] == class_id
    }


@pytest.fixture
def coco():
    return make_coco([[1], [1, 2]] * 100)


def test_order_of_ids_never_changes():
    assert hash_order(range(10)) == [9, 8, 4, 3, 0, 1, 7, 2, 6, 5]
    assert hash_order([str(i) for i in range(10)]) == hash_order(range(10))
    assert first_half(range(5)) == {4, 3, 0}
    assert first_half([]) == set()


def test_parts_share_nothing_and_keep_everything(coco):
    before = copy.deepcopy(coco)
    split = hold_out_images(coco, 0.3)
    assert coco == before
    assert len(ids(split.calib)) == split.wanted == 60
    assert sorted(ids(split.fit) + ids(split.calib)) == ids(coco)
    assert ids(split.calib) == sorted(hash_order(range(200))[:60])
    for part in (split.fit, split.calib):
        assert part['info'] == coco['info']
        assert part['categories'] == coco['categories']
        assert part['annotations'] == [
            ann for ann in coco['annotations'] if ann['image_id'] in ids(part)
        ]
    assert split.unmeasured == []


def test_order_in_the_file_plays_no_role(coco):
    turned = dict(
        coco,
        images=coco['images'][::-1],
        annotations=coco['annotations'][::-1])
    first, second = (hold_out_images(c).calib for c in (coco, turned))
    assert ids(first) == ids(second)[::-1]
    assert [set(ids(part)) for part in halve_images(coco)
            ] == [set(ids(part)) for part in halve_images(turned)]


def test_larger_part_holds_the_smaller(coco):
    parts = [set(ids(hold_out_images(coco, f, 1).calib))
             for f in (.05, .2, .5)]
    assert [len(part) for part in parts] == [10, 40, 100]
    assert parts[0] < parts[1] < parts[2]


@pytest.mark.parametrize('num, fraction, low, high, count', [
    (1000, .1, 50, 2000, 100),
    (200, .1, 50, 2000, 50),
    (60, .1, 50, 2000, 30),
    (3, .1, 50, 2000, 1),
    (1000, .1, 50, 80, 80),
    (25, .1, 1, 2000, 3),
])
def test_number_of_images(num, fraction, low, high, count):
    coco = make_coco([[1]] * num)
    split = hold_out_images(coco, fraction, low, high, rare_images=1)
    assert len(ids(split.calib)) == split.wanted == count


@pytest.mark.parametrize('num, held', [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1),
                                       (6, 2), (9, 3), (10, 3), (14, 7),
                                       (40, 33)])
def test_classes_keep_their_share(num, held):
    # Half of the images are wanted, and these come first.
    first = hash_order(range(200))[:num]
    classes = [[1, 2] if i in first else [1] for i in range(200)]
    coco = make_coco(classes)
    calib = hold_out_images(coco, 0.5).calib
    assert len(images_with(calib, 2)) == held
    assert len(ids(calib)) == 100


def test_keep_share_and_what_is_rare_can_be_chosen():
    first = hash_order(range(200))[:12]
    coco = make_coco([[1, 2] if i in first else [1] for i in range(200)])

    def held(**options):
        return len(images_with(hold_out_images(coco, .5, **options).calib, 2))

    assert held() == 5
    assert held(rare_images=12) == 4
    assert held(rare_images=12, keep_share=1.) == 0
    assert held(rare_images=12, keep_share=.25) == 9
    assert held(keep_share=1e-6) == 11


def test_classes_without_held_out_image_are_listed():
    coco = make_coco([[1, 2]] + [[1, 3]] + [[1]] * 98, num_classes=4)
    split = hold_out_images(coco)
    assert len(ids(split.calib)) == 50
    assert split.unmeasured == ['class2', 'class3']
    assert missing_classes(coco, split.fit) == []


def test_rare_classes_can_make_the_part_smaller():
    coco = make_coco([[1, 2 + i % 3] for i in range(9)])
    split = hold_out_images(coco)
    assert split.wanted == 4
    # One of each of the three rare classes; class 1 itself has three.
    assert len(ids(split.calib)) == 3


def test_crowd_regions_make_no_class():
    coco = make_coco([[1]] * 8 + [[1, 2]] * 8)
    for ann in coco['annotations']:
        ann['iscrowd'] = int(ann['category_id'] == 2)
    split = hold_out_images(coco, rare_images=1)
    assert len(ids(split.calib)) == 8
    assert split.unmeasured == []


@pytest.mark.parametrize('change, error, message', [
    (dict(fraction=0), ValueError, 'fraction must be more than 0 and at most '
     '0.5, got 0'),
    (dict(fraction=.6), ValueError, 'at most 0.5, got 0.6'),
    (dict(fraction=float('nan')), ValueError, 'got nan'),
    (dict(fraction='0.1'), TypeError, 'fraction must be a number'),
    (dict(keep_share=0), ValueError, 'keep_share must be more than 0'),
    (dict(keep_share=1.5), ValueError, 'at most 1, got 1.5'),
    (dict(min_images=0), ValueError, 'min_images must be at least 1'),
    (dict(max_images=40), ValueError, 'max_images must be at least 50'),
    (dict(rare_images=2.), TypeError, 'rare_images must be an int'),
])
def test_wrong_arguments(coco, change, error, message):
    with pytest.raises(error, match=message):
        hold_out_images(coco, **change)


def test_data_that_cannot_be_divided(coco):
    with pytest.raises(ValueError, match='no entry in "annotations"'):
        hold_out_images(dict(coco, annotations=[]))
    with pytest.raises(ValueError, match='None of the 1 images'):
        hold_out_images(make_coco([[1]]))
    with pytest.raises(ValueError, match='None of the 4 images.*keep_share'):
        hold_out_images(make_coco([[1, 2], [2, 3], [3, 4], [4, 1]]))
    with pytest.raises(ValueError, match='has a single image'):
        halve_images(make_coco([[1]]))
    for ann in coco['annotations']:
        ann['iscrowd'] = 1
    with pytest.raises(ValueError, match='has no instances'):
        hold_out_images(coco)
    with pytest.raises(ValueError, match='has no instances'):
        halve_images(coco)


@pytest.mark.parametrize('num, sizes', [(10, (5, 5)), (7, (4, 3)),
                                        (2, (1, 1))])
def test_halves_are_disjoint_and_complete(num, sizes):
    coco = make_coco([[1]] * num)
    halves = halve_images(coco)
    assert tuple(len(ids(half)) for half in halves) == sizes
    assert sorted(ids(halves[0]) + ids(halves[1])) == ids(coco)
    assert sum(len(half['annotations']) for half in halves) == num
    assert set(ids(halves[0])) == first_half(range(num))


def test_write_parts_refuses_what_leaks_or_overwrites(coco, tmp_path):
    parts = dict(zip(('a', 'b'), halve_images(coco)))
    with pytest.raises(ValueError, match='share 100 ids'):
        write_parts(dict(a=parts['a'], b=parts['a']), tmp_path, 'train')
    paths = write_parts(parts, tmp_path, 'train')
    assert [p.name for p in paths] == ['train-a.json', 'train-b.json']
    write_parts(parts, tmp_path, 'train')
    with pytest.raises(FileExistsError):
        write_parts(dict(a=parts['b'], b=parts['a']), tmp_path, 'train')
    write_parts(
        dict(a=parts['b'], b=parts['a']), tmp_path, 'train', overwrite=True)
    assert load_coco(paths[0]) == parts['b']


def run_tool(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    runpy.run_path(str(TOOL), run_name='__main__')


@pytest.fixture
def source(coco, tmp_path):
    path = tmp_path / 'train.json'
    coco['categories'].append(dict(id=3, name='rare'))
    ann = dict(coco['annotations'][0], id=10**6, category_id=3)
    coco['annotations'].append(ann)
    path.write_text(json.dumps(coco))
    return path


def test_tool_holds_out(source, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out'
    run_tool(monkeypatch, '--ann-file', source, '--out-dir', out,
             '--hold-out', .3)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(os.listdir(out)) == ['train-calib.json', 'train-fit.json']
    coco = load_coco(source)
    split = hold_out_images(coco, .3)
    assert load_coco(out / 'train-fit.json') == split.fit
    assert load_coco(out / 'train-calib.json') == split.calib
    counts = Counter(a['category_id'] for a in split.calib['annotations'])
    assert lines[0].split()[0] == 'file'
    assert lines[1].split()[:2] == ['train-fit.json', '140']
    assert lines[2].split() == [
        'train-calib.json', '60', str(sum(counts.values())), '2/3', 'rare',
        '(0)'
    ]
    assert lines[3:] == ['1 classes are not in train-calib.json: rare']

    run_tool(monkeypatch, '--ann-file', source, '--out-dir', tmp_path / 'few',
             '--hold-out', .3, '--hold-out-images', 5, 20)
    assert len(ids(load_coco(tmp_path / 'few' / 'train-calib.json'))) == 20


def test_tool_makes_two_folds(source, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out'
    run_tool(monkeypatch, '--ann-file', source, '--out-dir', out, '--folds',
             2)
    parts = [load_coco(out / f'train-fold{i}.json') for i in range(2)]
    assert parts == halve_images(load_coco(source))
    without = 'train-fold1.json' if 0 in first_half(range(200)) \
        else 'train-fold0.json'
    assert capsys.readouterr().out.splitlines()[3:] == [
        f'1 classes are not in {without}: rare'
    ]


def test_tool_says_when_rare_classes_need_their_images(tmp_path, monkeypatch,
                                                       capsys):
    source = tmp_path / 'train.json'
    source.write_text(json.dumps(make_coco([[2 + i % 3] for i in range(9)])))
    run_tool(monkeypatch, '--ann-file', source, '--out-dir', tmp_path,
             '--hold-out', .1)
    assert capsys.readouterr().out.splitlines()[-1] == (
        '3 images are held out instead of 4: rare classes need the others.')


@pytest.mark.parametrize('args, message', [
    (['--hold-out', 0], 'fraction must be more than 0'),
    (['--hold-out', .7], 'at most 0.5, got 0.7'),
    (['--hold-out', .1, '--hold-out-images', 60, 50],
     'max_images must be at least 60'),
    (['--hold-out', .1, '--val-ann', '{source}'],
     'and the validation part share'),
])
def test_tool_errors(source, tmp_path, monkeypatch, args, message):
    args = [str(arg).format(source=source) for arg in args]
    with pytest.raises(SystemExit, match=message):
        run_tool(monkeypatch, '--ann-file', source, '--out-dir',
                 tmp_path / 'out', *args)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('args, message', [
    (['--hold-out', .1, '--percent', 5], '--percent does not go with'),
    (['--folds', 2, '--keep-hidden-labels'],
     '--keep-hidden-labels does not go with'),
    (['--folds', 3], 'invalid choice: 3'),
    (['--folds', 2, '--hold-out', .1], 'not allowed with'),
    (['--hold-out-images', 1, 9], '--hold-out-images needs --hold-out'),
])
def test_options_that_do_not_go_together(source, tmp_path, monkeypatch,
                                         capsys, args, message):
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, '--ann-file', source, '--out-dir', tmp_path,
                 *args)
    assert message in capsys.readouterr().err
