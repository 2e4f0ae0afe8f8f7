# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import datetime
import json
import os
import pickle

import numpy as np
import pytest

from mmsemi.datasets.refer_files import (KNOWN_COUNTS, check_annotations,
                                         convert_refs, load_refs,
                                         read_annotations, split_counts,
                                         write_annotations)

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def sentence(number, text='The man'):
    return dict(
        sent_id=number,
        raw=text,
        sent=text.lower(),
        tokens=text.lower().split())


def make_refs():
    return [
        dict(
            ref_id=10 + i,
            ann_id=100 + i,
            category_id=1,
            image_id=7 if i < 2 else 8,
            file_name=f'COCO_{i}_object.jpg',
            split='train' if i < 2 else 'val',
            sent_ids=[2 * i, 2 * i + 1],
            sentences=[sentence(2 * i), sentence(2 * i + 1, 'Left guy')])
        for i in range(3)
    ]


def make_instances():
    images = [
        dict(id=i, file_name=f'{i}.jpg', height=20, width=30, license=1)
        for i in (7, 8, 9)
    ]
    annotations = [
        dict(
            id=100 + i,
            image_id=7 if i < 2 else 8,
            category_id=18,
            bbox=[1, 1, 4, 4],
            segmentation=SQUARE,
            area=16,
            iscrowd=0) for i in range(4)
    ]
    return dict(images=images, annotations=annotations, categories=[])


def converted():
    return convert_refs(
        make_refs(), make_instances(), 'mine', 'all', check_counts=False)


def dump(folder, value, protocol=2):
    path = folder / 'refs(mine).p'
    path.write_bytes(pickle.dumps(value, protocol))
    return path


# The pickle ---------------------------------------------------------------


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_honest_refs_load_at_every_protocol(tmp_path, protocol):
    refs = make_refs()
    assert load_refs(dump(tmp_path, refs, protocol)) == refs


class Command:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path), )


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_command_is_refused_and_not_run(tmp_path, protocol):
    made = tmp_path / 'made'
    refs = make_refs()
    refs[1]['sentences'][0]['raw'] = Command(made)
    path = dump(tmp_path, refs, protocol)
    with pytest.raises(ValueError, match=r'plain values: it asks for \w+'):
        load_refs(path)
    assert not made.exists()
    # The file is what it is meant to be.
    pickle.loads(path.read_bytes())
    assert made.exists()


@pytest.mark.parametrize(
    'value', [np.int64(3), datetime.date(2020, 1, 1), print])
def test_what_has_a_class_is_refused(tmp_path, value):
    path = dump(tmp_path, [dict(ref_id=value)])
    with pytest.raises(ValueError, match='only lists, dicts, texts'):
        load_refs(path)


@pytest.mark.parametrize('raw, text', [
    (b'man', 'man'),
    (b'caf\xc3\xa9', 'caf\u00e9'),
    (b'caf\xe9', 'caf\u00e9'),
])
def test_bytes_of_python_2(tmp_path, raw, text):
    # What Python 2 wrote for [{'raw': '...'}] at protocol 2: SHORT_BINSTRING.
    content = (b'\x80\x02]q\x00}q\x01U\x03rawq\x02U' + bytes([len(raw)]) +
               raw + b'q\x03sa.')
    path = tmp_path / 'refs(old).p'
    path.write_bytes(content)
    assert load_refs(path) == [dict(raw=text)]


@pytest.mark.parametrize('content', [
    b'', b'no pickle', pickle.dumps(make_refs())[:-20], b'\x80\x02]q\x00',
    b'cos\nsystem\n(S"true"\ntR.'
])
def test_broken_pickles_are_named(tmp_path, content):
    path = tmp_path / 'refs(unc).p'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'refs\(unc\).p cannot be read'):
        load_refs(path)


def test_other_content_and_no_file(tmp_path):
    for value in ({}, [1], 'text'):
        with pytest.raises(ValueError, match='must hold a list of refs'):
            load_refs(dump(tmp_path, value))
    with pytest.raises(FileNotFoundError, match='no file of refs'):
        load_refs(tmp_path / 'none.p')


# Conversion ---------------------------------------------------------------


def test_conversion_is_complete_and_lean():
    data = converted()
    assert set(data) == {
        'version', 'dataset', 'partition', 'images', 'annotations', 'refs'
    }
    # Image 9 and annotation 103 have no ref.
    assert data['images'] == [
        dict(image_id=i, file_name=f'{i}.jpg', height=20, width=30)
        for i in (7, 8)
    ]
    assert [ann['ann_id'] for ann in data['annotations']] == [100, 101, 102]
    assert data['annotations'][0] == dict(
        ann_id=100,
        image_id=7,
        category_id=18,
        segmentation=SQUARE,
        bbox=[1, 1, 4, 4],
        area=16)
    assert data['refs'][2] == dict(
        ref_id=12,
        ann_id=102,
        image_id=8,
        split='val',
        sentences=[
            dict(sent_id=4, raw='The man', sent='the man'),
            dict(sent_id=5, raw='Left guy', sent='left guy')
        ])
    assert split_counts(data) == dict(train=(2, 1, 4), val=(1, 1, 2))


def test_polygons_without_area_are_left_out():
    instances = make_instances()
    instances['annotations'][0]['segmentation'] = [[1, 1, 2, 2], *SQUARE]
    data = convert_refs(make_refs(), instances, 'mine', 'all', False)
    assert data['annotations'][0]['segmentation'] == SQUARE


@pytest.mark.parametrize('change, message', [
    (lambda r, i: r[1].update(ref_id=10), 'ref_id occur more than once'),
    (lambda r, i: r[1].update(ann_id=555), 'ann_id=555, which the instances'),
    (lambda r, i: r[1].update(image_id=1), 'image_id=1, which the instances'),
    (lambda r, i: r[1].update(image_id=8), 'of image 8, but its annotation'),
    (lambda r, i: r[1].pop('split'), '"refs" has no split'),
    (lambda r, i: r[1].update(sentences=[]), 'Ref 11 has no sentence'),
    (lambda r, i: r[1]['sentences'][0].pop('raw'), 'has no raw'),
    (lambda r, i: r[1]['sentences'][0].update(sent=3), 'is no text'),
    (lambda r, i: r[1]['sentences'][0].update(sent_id=0), 'sent_id occur'),
    (lambda r, i: i['annotations'][0].update(bbox=[1, 1, -4, 4]), 'a box'),
    (lambda r, i: i['annotations'][0].update(bbox=[1, 1, float('nan'), 4]),
     'a box'),
    (lambda r, i: i['annotations'][0].update(segmentation=[]), 'polygons'),
    (lambda r, i: i['annotations'][0].update(
        segmentation=dict(size=[30, 20], counts='')), r'has \[20, 30\]'),
    (lambda r, i: i['annotations'][1].update(id=100), 'id occur more'),
    (lambda r, i: i['images'][1].update(file_name='7.jpg'), 'file_name occur'),
    (lambda r, i: i['images'][0].update(height=0), 'height and width'),
    (lambda r, i: i.pop('images'), 'no list "images"'),
    (lambda r, i: r.clear(), 'no list "images", or an empty'),
])
def test_conversion_refuses(change, message):
    refs, instances = make_refs(), make_instances()
    change(refs, instances)
    with pytest.raises(ValueError, match=message):
        convert_refs(refs, instances, 'mine', 'all', check_counts=False)


def test_numbers_are_compared_with_the_published_ones():
    with pytest.raises(ValueError, match='numbers of mine .* not known'):
        convert_refs(make_refs(), make_instances(), 'mine', 'all')
    with pytest.raises(
            ValueError,
            match=r'train: \(2, 1\) instead of \(42404, 16994\); val: '
            r'\(1, 1\) instead .* testA: \(0, 0\) instead'):
        convert_refs(make_refs(), make_instances(), 'refcoco', 'unc')


def test_fitting_numbers_pass_and_unknown_splits_do_not(monkeypatch):
    known = dict(train=(2, 1), val=(1, 1))
    monkeypatch.setitem(KNOWN_COUNTS, ('mine', 'all'), known)
    convert_refs(make_refs(), make_instances(), 'mine', 'all')
    known.pop('val')
    with pytest.raises(ValueError, match=r'val: \(1, 1\), not published'):
        convert_refs(make_refs(), make_instances(), 'mine', 'all')


def test_known_numbers():
    assert KNOWN_COUNTS['refcocog', 'umd']['test'] == (5023, 2600)
    totals = {
        key: sum(refs for refs, _ in splits.values())
        for key, splits in KNOWN_COUNTS.items()
    }
    assert totals == {
        ('refcoco', 'unc'): 50000,
        ('refcoco', 'google'): 50000,
        ('refcoco+', 'unc'): 49856,
        ('refcocog', 'google'): 49822,
        ('refcocog', 'umd'): 49822
    }


# The JSON -----------------------------------------------------------------


def test_written_annotations_are_read(tmp_path):
    data, path = converted(), tmp_path / 'folder/mine.json'
    write_annotations(data, path)
    assert read_annotations(path) == data
    write_annotations(data, path)
    changed = copy.deepcopy(data)
    changed['refs'][0]['split'] = 'val'
    with pytest.raises(FileExistsError, match='other content'):
        write_annotations(changed, path)
    write_annotations(changed, path, overwrite=True)
    assert read_annotations(path) == changed
    assert [file.name for file in path.parent.iterdir()] == ['mine.json']


@pytest.mark.parametrize('text, message', [
    (json.dumps(converted())[:-30], 'not valid JSON .* cut off'),
    ('[]', 'one JSON object, got a list'),
    ('{}', 'version None, this code reads version 1'),
    ('{"version": 1}', 'no list "images"'),
    ('{"version": 1, "images": [3]}', '"images" is no object: 3'),
    ('[' * 100000, 'not valid JSON'),
])
def test_malformed_json_is_named(tmp_path, text, message):
    path = tmp_path / 'mine.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=f'mine.json.*{message}'):
        read_annotations(path)


def test_a_pickle_is_no_json_and_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(ValueError, match='A pickle .*refer2json'):
        read_annotations(dump(tmp_path, make_refs()))
    with pytest.raises(FileNotFoundError, match='refer2json.py'):
        read_annotations(tmp_path / 'none.json')


def test_ids_of_odd_types_are_refused():
    data = converted()
    data['refs'][0]['ref_id'] = []
    with pytest.raises(ValueError, match='ref_id of "refs" is no number'):
        check_annotations(data)
