# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import copy
import random

import cv2
import numpy as np
import pytest

from mmsemi.datasets import check_referring, split_referring
from mmsemi.datasets.refer_files import check_annotations

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def annotate(image_ids, split='train', first=0):
    """Return annotations with one ref of each of the images, in order."""
    names = {i: f'{i}.jpg' for i in image_ids}
    return dict(
        version=1,
        dataset='mine',
        partition='all',
        images=[
            dict(image_id=i, file_name=name, height=8, width=9)
            for i, name in names.items()
        ],
        annotations=[
            dict(
                ann_id=first + n,
                image_id=i,
                category_id=1 + n % 3,
                segmentation=SQUARE,
                bbox=[1, 1, 4, 4],
                area=16) for n, i in enumerate(image_ids)
        ],
        refs=[
            dict(
                ref_id=first + n,
                ann_id=first + n,
                image_id=i,
                split=split,
                sentences=[dict(sent_id=first + n, raw='A', sent='a')])
            for n, i in enumerate(image_ids)
        ])


def joined(*parts):
    out = copy.deepcopy(parts[0])
    for part in parts[1:]:
        known = {image['image_id'] for image in out['images']}
        out['images'] += [
            i for i in part['images'] if i['image_id'] not in known
        ]
        out['annotations'] += part['annotations']
        out['refs'] += part['refs']
    return out


# Splits -------------------------------------------------------------------


def test_the_published_procedure():
    # Images in order of their first ref, others' splits aside.
    ids = [1003, 1000, 1003, 1001, 1002, *range(1004, 1010), 1000]
    order = list(dict.fromkeys(ids))
    data = joined(annotate(ids), annotate([5, 6], 'val', 100))
    labeled, unlabeled = split_referring(data, 30)
    random.seed(0)
    expected = random.sample(order, 3)
    assert set(labeled) == {f'{i}.jpg' for i in expected}
    assert sorted(labeled + unlabeled) == sorted(f'{i}.jpg' for i in order)
    # Both keep the order.
    position = {f'{i}.jpg': n for n, i in enumerate(order)}
    for part in (labeled, unlabeled):
        assert part == sorted(part, key=position.get)


def test_the_sample_of_ten_images():
    labeled, _ = split_referring(annotate(list(range(1000, 1010))), 30)
    assert set(labeled) == {'1006.jpg', '1009.jpg', '1000.jpg'}


def test_one_percent_of_refcoco_are_169_images():
    data = annotate(list(range(16994)))
    labeled, unlabeled = split_referring(data, 1)
    assert (len(labeled), len(unlabeled)) == (169, 16825)
    # Floor, where mmsemi's own rounds.
    assert len(split_referring(data, 1, scheme='seeded')[0]) == 170
    assert len(split_referring(data, 0.5)[0]) == 84


def test_the_global_random_state_is_left_alone():
    random.seed(9)
    split_referring(annotate(list(range(20))), 10)
    assert random.random() == random.Random(9).random()


def test_seeded_splits_are_nested_and_independent_of_the_order():
    data = annotate(list(range(40)))
    small = split_referring(data, 10, seed=3, scheme='seeded')[0]
    large = split_referring(data, 25, seed=3, scheme='seeded')[0]
    assert (len(small), len(large)) == (4, 10) and set(small) < set(large)
    turned = copy.deepcopy(data)
    for key in ('images', 'refs'):
        turned[key].reverse()
    assert split_referring(turned, 10, seed=3, scheme='seeded')[0] == small
    others = [
        split_referring(data, 10, seed=s, fold=f, scheme='seeded')[0]
        for s, f in ((4, 0), (3, 1))
    ]
    assert small not in others and others[0] != others[1]


def test_everything():
    data = annotate(list(range(5)))
    for scheme in ('semires', 'seeded'):
        labeled, unlabeled = split_referring(data, 100, scheme=scheme)
        assert len(labeled) == 5 and unlabeled == []


@pytest.mark.parametrize('options, message', [
    (dict(percent=1), 'percent=1 of 20 images is less than one image; 5'),
    (dict(percent=2, scheme='seeded'), 'less than one image'),
    (dict(percent=0), 'more than 0'),
    (dict(percent=101), 'at most 100'),
    (dict(percent=10, fold=1), 'has no fold'),
    (dict(percent=10, scheme='mmdet'), 'scheme must be one of'),
    (dict(percent=10, split='val'), r"'val' has no ref; .*\['train'\]"),
])
def test_refused_splits(options, message):
    with pytest.raises(ValueError, match=message):
        split_referring(annotate(list(range(20))), **options)


# Checks -------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    for i in range(4):
        cv2.imwrite(
            str(tmp_path / f'{i}.jpg'), np.zeros((8, 9, 3), np.uint8))
    return tmp_path


@pytest.fixture
def data():
    return joined(annotate([0, 1, 2]), annotate([3], 'val', 10))


def test_good_annotations(data, images):
    check_annotations(data)
    tracked = []

    def track(items):
        tracked.extend(items)
        return items

    report = check_referring(
        data, images, [['0.jpg'], ['1.jpg', '2.jpg']], track=track)
    assert (report.errors, report.warnings) == ([], [])
    assert report.counts == dict(train=(3, 3, 3), val=(1, 1, 1))
    assert len(tracked) == 4


@pytest.mark.parametrize('change, message', [
    (lambda d: d['refs'][1]['sentences'][0].update(raw='  '),
     '1 sentences are empty; sent_id: 1'),
    (lambda d: d['refs'][1]['sentences'][0].update(sent=''),
     '1 sentences are empty; sent_id: 1'),
    (lambda d: d['annotations'][2].update(
        segmentation=[[20, 20, 22, 20, 22, 22]]),
     '1 masks are empty; ann_id: 2'),
    (lambda d: d['annotations'][2].update(
        segmentation=dict(size=[8, 9], counts=[5, 'x'])),
     '1 masks cannot be decoded; ann_id: 2'),
    (lambda d: d['refs'][1].update(split='val') or d['refs'][1].update(
        image_id=0, ann_id=0), 'train and val share 1 images: 0'),
    (lambda d: d['images'][0].update(height=9), r'0.jpg \(9 x 8, noted 9 x 9'),
    (lambda d: d['images'][0].update(file_name='no.jpg'),
     '1 of 4 images are not in .*: no.jpg'),
    (lambda d: d['refs'][0].update(ann_id=99), 'annotation 99, which is not'),
])
def test_errors_are_found(data, images, change, message):
    change(data)
    report = check_referring(data, images)
    assert len(report.errors) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(report.errors[0])


def test_google_partitions_share_images(data):
    data['refs'][1].update(split='val', image_id=0, ann_id=0)
    data['partition'] = 'google'
    report = check_referring(data)
    assert not report.errors
    assert 'share 1 images' in report.warnings[0]


def test_lists_are_compared(data):
    report = check_referring(
        data, lists=[['0.jpg', '1.jpg'], ['1.jpg'], ['3.jpg', '2.jpg']])
    assert report.errors == [
        'Lists 1 and 2 share 1 images: 1.jpg.',
        "1 images of list 3 have no ref in the split 'train': 3.jpg."
    ]
