# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmsemi.datasets.splits import (check_coco, check_no_leak, load_coco,
                                    split_coco, split_coco_k_shot, split_stem,
                                    write_split)

TOOL = Path(__file__).parents[2] / 'tools/dataset_converters/split_coco.py'


def make_coco(classes_per_image, num_classes=None):
    """Build a COCO dict from one list of class ids per image."""
    used = {c for image in classes_per_image for c in image}
    num_classes = num_classes or max(used)
    coco = dict(
        info=dict(version='1'),
        licenses=[dict(id=3)],
        categories=[
            dict(id=c, name=f'class{c}') for c in range(1, num_classes + 1)
        ],
        images=[
            dict(id=10 + i, file_name=f'{i:03d}.jpg', width=8, height=6)
            for i in range(len(classes_per_image))
        ],
        annotations=[])
    for i, image in enumerate(classes_per_image):
        for c in image:
            coco['annotations'].append(
                dict(
                    id=len(coco['annotations']),
                    image_id=10 + i,
                    category_id=c,
                    bbox=[0, 0, 2, 2],
                    area=4,
                    iscrowd=0))
    return coco


def ids(part):
    return [img['id'] for img in part['images']]


def classes_of(part):
    return {ann['category_id'] for ann in part['annotations']}


@pytest.fixture
def coco():
    return make_coco([[1, 1], [1, 2], [2], []] * 10)


def test_percent_keeps_everything_else(coco):
    before = copy.deepcopy(coco)
    labeled, unlabeled = split_coco(coco, 10)
    assert coco == before
    assert len(ids(labeled)) == 4 and len(ids(unlabeled)) == 36
    assert sorted(ids(labeled) + ids(unlabeled)) == ids(coco)
    assert ids(labeled) == sorted(ids(labeled))
    for part in (labeled, unlabeled):
        for key in ('info', 'licenses', 'categories'):
            assert part[key] == coco[key]
    assert labeled['annotations'] == [
        a for a in coco['annotations'] if a['image_id'] in ids(labeled)
    ]
    assert unlabeled['annotations'] == []


def test_hidden_labels_stay_when_asked(coco):
    labeled, unlabeled = split_coco(coco, 10, keep_hidden_labels=True)
    both = labeled['annotations'] + unlabeled['annotations']
    assert sorted(a['id'] for a in both) == list(range(50))
    assert {a['image_id'] for a in unlabeled['annotations']} <= set(
        ids(unlabeled))


def test_seed_and_fold_decide_and_file_order_does_not(coco):
    first = ids(split_coco(coco, 25, seed=1, fold=2)[0])
    assert first == ids(split_coco(coco, 25, seed=1, fold=2)[0])
    assert first != ids(split_coco(coco, 25, seed=2, fold=2)[0])
    assert first != ids(split_coco(coco, 25, seed=1, fold=1)[0])
    turned = dict(coco, images=coco['images'][::-1])
    assert first == ids(split_coco(turned, 25, seed=1, fold=2)[0])[::-1]


def test_the_drawn_images_never_change(coco):
    # Published splits must come out the same for ever.
    labeled, _ = split_coco(coco, 10, seed=5, fold=1, keep_all_classes=False)
    assert ids(labeled) == [31, 33, 37, 45]


def test_larger_part_holds_the_smaller(coco):
    parts = [
        set(ids(split_coco(coco, p, keep_all_classes=False)[0]))
        for p in (5, 10, 50, 75)
    ]
    assert [len(p) for p in parts] == [2, 4, 20, 30]
    assert parts[0] < parts[1] < parts[2] < parts[3]


@pytest.mark.parametrize('num, percent, count', [(100, 29, 29),
                                                 (100, 57, 57), (200, .5, 1),
                                                 (101, 1, 1), (150, 1, 2)])
def test_count_is_rounded_not_cut(num, percent, count):
    coco = make_coco([[1]] * num)
    assert len(ids(split_coco(coco, percent)[0])) == count


@pytest.mark.parametrize('fold, percent, expected', [
    (1, 25, [10, 11, 15, 18, 19, 21, 22, 25, 26, 47]),
    (2, 25, [17, 18, 21, 25, 28, 31, 32, 41, 44]),
])
def test_mmdet_scheme_takes_mmdets_images(coco, fold, percent, expected):
    state = np.random.get_state()
    np.random.seed(fold)
    reference = set(np.random.choice(range(40), size=int(percent / 100. * 40)))
    np.random.set_state(state)
    labeled, unlabeled = split_coco(coco, percent, fold=fold, scheme='mmdet')
    assert set(ids(labeled)) == {10 + i for i in reference}
    assert ids(labeled) == expected
    assert sorted(ids(labeled) + ids(unlabeled)) == ids(coco)


def test_mmdet_scheme_keeps_no_class_and_cuts_the_count():
    coco = make_coco([[1]] * 198 + [[2]])
    labeled, _ = split_coco(coco, 1, fold=1, scheme='mmdet')
    assert len(ids(labeled)) == 1  # int(1.99)
    assert classes_of(labeled) == {1}
    assert len(ids(split_coco(coco, 1.5)[0])) == 3


def test_split_leaves_the_global_random_state_alone(coco):
    before = np.random.get_state()[1].copy()
    split_coco(coco, 25)
    split_coco(coco, 25, fold=1, scheme='mmdet')
    split_coco_k_shot(coco, 2)
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize('seed', range(20))
def test_every_class_is_kept_by_swapping(seed):
    coco = make_coco([[1]] * 90 + [[2]] * 5 + [[3, 4]] + [[5]] + [[]] * 3)
    plain = set(ids(split_coco(coco, 5, seed, keep_all_classes=False)[0]))
    kept = split_coco(coco, 5, seed)[0]
    assert len(ids(kept)) == 5
    assert classes_of(kept) == {1, 2, 3, 4, 5}
    # Classes 2, 5 and the pair 3, 4 need one image each.
    swaps = len(set(ids(kept)) - plain)
    absent = {2, 3, 5} - {
        a['category_id']
        for a in coco['annotations'] if a['image_id'] in plain
    }
    assert swaps == len(absent)


def test_classes_are_kept_when_no_image_can_be_swapped_singly():
    # The two images of one class each must both go for the one of both.
    coco = make_coco([[1], [2], [1, 2], [3]])
    for seed in range(20):
        assert classes_of(split_coco(coco, 50, seed)[0]) == {1, 2, 3}


def test_crowds_and_ignored_do_not_keep_a_class():
    coco = make_coco([[1]] * 8 + [[2]] * 2)
    for ann in coco['annotations']:
        if ann['image_id'] == 18:
            ann['iscrowd'] = 1
    for seed in range(10):
        assert 19 in ids(split_coco(coco, 20, seed)[0])
    coco['annotations'][-1]['ignore'] = 1
    parts = {tuple(ids(split_coco(coco, 20, seed)[0])) for seed in range(10)}
    assert not all(19 in part for part in parts)


def test_too_few_images_for_all_classes():
    coco = make_coco([[1], [2], [3]] * 10)
    with pytest.raises(ValueError, match='labels 2 of 30 images, too few to '
                       'hold all 3 classes; 3 images do.*keep_all_classes'):
        split_coco(coco, 6)
    assert len(ids(split_coco(coco, 6, keep_all_classes=False)[0])) == 2


@pytest.mark.parametrize('percent', [0, -1, 100.1, float('nan'),
                                     float('inf')])
def test_percent_out_of_range(coco, percent):
    with pytest.raises(ValueError, match='percent must be more than 0'):
        split_coco(coco, percent)


@pytest.mark.parametrize('kwargs, error, text', [
    (dict(percent='10'), TypeError, "percent must be a number, got '10'"),
    (dict(percent=True), TypeError, 'percent must be a number'),
    (dict(percent=10, seed=-1), ValueError, 'seed must be at least 0'),
    (dict(percent=10, seed=1.5), TypeError, 'seed must be an int'),
    (dict(percent=10, fold=2**32), ValueError, 'fold must be'),
    (dict(percent=1), ValueError, 'percent=1 of 40 images is less than one '
     'image; 2.5 percent is one'),
    (dict(percent=99.9), ValueError, 'labels all of them.*percent=100'),
    (dict(percent=10, scheme='x'), ValueError, "seeded.*mmdet.*got 'x'"),
    (dict(percent=10, scheme='mmdet', seed=3), ValueError, 'Set fold=3'),
    (dict(percent=100, scheme='mmdet'), ValueError, 'scheme="seeded"'),
])
def test_bad_arguments(coco, kwargs, error, text):
    with pytest.raises(error, match=text):
        split_coco(coco, **kwargs)


def test_percent_100_labels_everything(coco):
    labeled, unlabeled = split_coco(coco, 100)
    assert labeled == coco
    assert unlabeled['images'] == [] and unlabeled['annotations'] == []


@pytest.mark.parametrize('key', ['images', 'annotations', 'categories'])
@pytest.mark.parametrize('split', [split_coco, split_coco_k_shot])
def test_missing_empty_or_wrong_part(coco, key, split):
    with pytest.raises(ValueError, match=f'no entry in "{key}"'):
        split(dict(coco, **{key: []}), 10)
    with pytest.raises(ValueError, match=f'"{key}" must be a list'):
        split(dict(coco, **{key: {}}), 10)
    del coco[key]
    with pytest.raises(ValueError, match=f'has no "{key}"'):
        split(coco, 10)


def test_inconsistent_files(coco):
    check_coco(coco)
    for key, field, value, text in [
        ('images', 'id', 11, 'Duplicate ids in "images": 11'),
        ('images', 'file_name', './001.jpg', 'Duplicate file names.*001.jpg'),
        ('images', 'file_name', '', 'Image 10 has no "file_name"'),
        ('categories', 'id', 2, 'Duplicate ids in "categories": 2'),
        ('annotations', 'image_id', 7, 'image_id=7.*does not list'),
        ('annotations', 'category_id', 9, 'category_id=9'),
    ]:
        bad = copy.deepcopy(coco)
        bad[key][0][field] = value
        with pytest.raises(ValueError, match=text):
            check_coco(bad)
    for key, field in [('images', 'id'), ('annotations', 'image_id')]:
        bad = copy.deepcopy(coco)
        del bad[key][0][field]
        with pytest.raises(ValueError, match=f'"{key}" has no "{field}"'):
            check_coco(bad)
    with pytest.raises(TypeError, match='got list'):
        check_coco([])


def test_lvis_names_images_by_url(coco):
    for img in coco['images']:
        img['coco_url'] = 'http://x/' + img.pop('file_name')
    assert len(ids(split_coco(coco, 10)[0])) == 4


@pytest.mark.parametrize('shots', [1, 3, 5])
def test_k_shot_holds_enough_and_nothing_to_spare(shots):
    rng = np.random.RandomState(0)
    coco = make_coco([
        rng.choice([1, 1, 1, 2, 2, 3], rng.randint(4)).tolist()
        for _ in range(80)
    ])
    labeled, unlabeled = split_coco_k_shot(coco, shots, seed=3)
    assert sorted(ids(labeled) + ids(unlabeled)) == ids(coco)
    counts = Counter(a['category_id'] for a in labeled['annotations'])
    assert all(counts[c] >= shots for c in (1, 2, 3))
    for image in ids(labeled):
        less = Counter(a['category_id'] for a in labeled['annotations']
                       if a['image_id'] != image)
        assert any(less[c] < shots for c in (1, 2, 3))


def test_k_shot_takes_the_richest_images():
    coco = make_coco([[1]] * 5 + [[1, 2, 3]] + [[2], [3]] * 5)
    assert ids(split_coco_k_shot(coco, 1)[0]) == [15]
    # Greedy takes the first image below; it proves unnecessary later.
    coco = make_coco([[1, 2, 3, 4], [1, 2, 5, 5], [3, 4, 6, 6], [1]])
    assert ids(split_coco_k_shot(coco, 1)[0]) == [11, 12]


def test_k_shot_seed_chooses_between_equal_images():
    coco = make_coco([[1]] * 30)
    parts = [ids(split_coco_k_shot(coco, 2, seed=s)[0]) for s in range(5)]
    assert parts[0] == ids(split_coco_k_shot(coco, 2, seed=0)[0])
    assert all(len(p) == 2 for p in parts)
    assert len({tuple(p) for p in parts}) > 1


def test_k_shot_errors(coco):
    rare = make_coco([[1]] * 9 + [[2]])
    with pytest.raises(ValueError, match=r'class2 \(1\)\..*allow_fewer'):
        split_coco_k_shot(rare, 3)
    labeled, _ = split_coco_k_shot(rare, 3, allow_fewer=True)
    assert Counter(a['category_id']
                   for a in labeled['annotations']) == {1: 3, 2: 1}
    with pytest.raises(ValueError, match='shots must be at least 1'):
        split_coco_k_shot(coco, 0)
    with pytest.raises(TypeError, match='shots must be an int'):
        split_coco_k_shot(coco, 1.5)
    with pytest.raises(ValueError, match='needs all 2 images'):
        split_coco_k_shot(make_coco([[1], [1]]), 2)


def test_leaks_are_refused(coco):
    labeled, unlabeled = split_coco(coco, 10)
    check_no_leak(labeled, unlabeled)
    image = labeled['images'][0]
    same_id = dict(images=[dict(id=image['id'], file_name='new.jpg')])
    with pytest.raises(ValueError, match=f'1 ids: {image["id"]}'):
        check_no_leak(labeled, same_id)
    same_file = dict(images=[dict(id=99, file_name='./' +
                                  image['file_name'])])
    with pytest.raises(ValueError, match='labelled and the unlabelled part '
                       f'share 1 file names: {image["file_name"]}'):
        check_no_leak(labeled, same_file)
    # Ids of a validation file count anew.
    val = dict(images=[dict(id=image['id'], file_name='val.jpg')])
    check_no_leak(labeled, unlabeled, val)
    with pytest.raises(ValueError, match='labelled and the validation'):
        check_no_leak(labeled, unlabeled, same_file)
    hidden = dict(images=[dict(unlabeled['images'][0], id=99)])
    with pytest.raises(ValueError, match='unlabelled and the validation'):
        check_no_leak(labeled, unlabeled, hidden)
    with pytest.raises(ValueError, match='validation part has no "images"'):
        check_no_leak(labeled, unlabeled, {})


def test_load_coco_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match='no annotation file.*a.json'):
        load_coco(tmp_path / 'a.json')
    (tmp_path / 'b.json').write_text('{"images": [')
    with pytest.raises(ValueError, match='b.json is not valid JSON'):
        load_coco(tmp_path / 'b.json')
    (tmp_path / 'c.json').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='c.json is not valid JSON'):
        load_coco(tmp_path / 'c.json')
    (tmp_path / 'd.json').write_text('[]')
    with pytest.raises(ValueError, match='d.json must hold one JSON object'):
        load_coco(tmp_path / 'd.json')


def test_write_split(coco, tmp_path):
    parts = split_coco(coco, 10)
    out = tmp_path / 'new' / 'folder'
    paths = write_split(*parts, out, 'train.1@10')
    assert [p.name for p in paths
            ] == ['train.1@10.json', 'train.1@10-unlabeled.json']
    assert [load_coco(p) for p in paths] == list(parts)
    assert sorted(os.listdir(out)) == sorted(p.name for p in paths)
    assert paths[0].stat().st_mode & 0o777 == 0o666 & ~_umask()

    stamp = paths[0].stat().st_mtime_ns
    write_split(*parts, out, 'train.1@10')
    assert paths[0].stat().st_mtime_ns == stamp

    other = split_coco(coco, 10, seed=1)
    with pytest.raises(FileExistsError, match='other content.*overwrite'):
        write_split(*other, out, 'train.1@10')
    assert load_coco(paths[0]) == parts[0]
    write_split(*other, out, 'train.1@10', overwrite=True)
    assert [load_coco(p) for p in paths] == list(other)

    with pytest.raises(ValueError, match='share 4 ids'):
        write_split(parts[0], coco, out, 'leak')
    assert len(os.listdir(out)) == 2


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_failed_write_leaves_nothing_behind(coco, tmp_path, monkeypatch):
    parts = split_coco(coco, 10)

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        write_split(*parts, tmp_path, 'train')
    assert os.listdir(tmp_path) == []


def test_names():
    assert split_stem('instances_train2017', 10, fold=1, scheme='mmdet') == \
        'instances_train2017.1@10'
    assert split_stem('a', .5, fold=1, scheme='mmdet') == 'a.1@0.5'
    assert split_stem('a', 10., seed=4, fold=1) == 'a.seed4-fold1@10'
    assert split_stem('a', shots=5) == 'a.seed0-fold0@5shot'
    with pytest.raises(ValueError, match='either percent or shots'):
        split_stem('a')


def run_tool(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_tool(coco, tmp_path, monkeypatch, capsys):
    source = tmp_path / 'instances_train2017.json'
    source.write_text(json.dumps(coco))
    out = tmp_path / 'out'
    run_tool(monkeypatch, '--ann-file', source, '--out-dir', out, '--percent',
             25, '--fold', 1, 2, '--scheme', 'mmdet')
    assert sorted(os.listdir(out)) == [
        'instances_train2017.1@25-unlabeled.json',
        'instances_train2017.1@25.json',
        'instances_train2017.2@25-unlabeled.json',
        'instances_train2017.2@25.json',
    ]
    assert ids(load_coco(out / 'instances_train2017.1@25.json')) == [
        10, 11, 15, 18, 19, 21, 22, 25, 26, 47
    ]
    capsys.readouterr()

    run_tool(monkeypatch, '--ann-file', source, '--out-dir', out, '--percent',
             10, '--k-shot', 3, '--seed', 7, '--keep-hidden-labels')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        'file', 'images', 'instances', 'classes', 'rarest', 'class'
    ]
    labeled = load_coco(out / 'instances_train2017.seed7-fold0@10.json')
    counts = Counter(a['category_id'] for a in labeled['annotations'])
    rare = min((1, 2), key=lambda c: (counts[c], c))
    assert lines[1].split() == [
        'instances_train2017.seed7-fold0@10.json', '4',
        str(len(labeled['annotations'])), '2/2', f'class{rare}',
        f'({counts[rare]})'
    ]
    hidden = load_coco(out /
                       'instances_train2017.seed7-fold0@10-unlabeled.json')
    assert len(hidden['annotations']) == 50 - len(labeled['annotations'])
    assert (out / 'instances_train2017.seed7-fold0@3shot.json').exists()


def test_tool_errors(coco, tmp_path, monkeypatch):
    source = tmp_path / 'train.json'
    common = ('--ann-file', source, '--out-dir', tmp_path / 'out')
    with pytest.raises(SystemExit, match='no annotation file'):
        run_tool(monkeypatch, *common)
    source.write_text(json.dumps(coco))
    with pytest.raises(SystemExit, match='percent=1 of 40 images'):
        run_tool(monkeypatch, *common)
    val = tmp_path / 'val.json'
    val.write_text(json.dumps(coco))
    with pytest.raises(SystemExit, match='and the validation part share'):
        run_tool(monkeypatch, *common, '--percent', 10, '--val-ann', val)
    assert not (tmp_path / 'out').exists()
    run_tool(monkeypatch, *common, '--percent', 10)
    with pytest.raises(SystemExit, match='exists with other content'):
        run_tool(monkeypatch, *common, '--percent', 10,
                 '--keep-hidden-labels')
    run_tool(monkeypatch, *common, '--percent', 10, '--keep-hidden-labels',
             '--overwrite')
