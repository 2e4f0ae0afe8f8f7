# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_utils
import pytest

from mmsemi.datasets import DIGIT_WORDS
from mmsemi.datasets.digit_expressions import (COLOURS, describe_digits,
                                               draw_sentences)
from mmsemi.datasets.digit_scenes import (DIGIT_CLASSES, DigitScene,
                                          DigitSceneComposer)
from mmsemi.datasets.digits import checksum, make_digits
from mmsemi.datasets.digits_referring import ReferringSceneComposer
from mmsemi.datasets.refer_files import read_annotations, split_counts

ROOT = Path(__file__).resolve().parents[2]
PATTERN = re.compile(
    r'the (?:(?P<ordinal>first|second|third|fourth|fifth) )?'
    r'(?:(?P<extreme>leftmost|rightmost|topmost|bottommost) )?'
    r'(?:(?P<size>big|small|biggest|smallest) )?'
    rf'(?:(?P<colour>{"|".join(COLOURS)}) )?'
    rf'(?P<noun>digit|{"|".join(DIGIT_CLASSES)})'
    r'(?: (?:on|at) the (?P<where>left|right|top|bottom))?'
    r'(?: from the (?P<start>left|right|top|bottom))?')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return make_digits(
        tmp_path_factory.mktemp('data') / 'digits',
        num_train=60,
        num_val=10,
        percents=(50, ),
        referring=True)


def measure(image, mask, label):
    """What a reader sees of a digit: name, colour, box."""
    rows, columns = np.nonzero(mask)
    # The middle of a stroke is of the digit's own colour.
    ink = np.median(image[mask], axis=0)
    return dict(
        noun=DIGIT_CLASSES[label],
        colour=min(COLOURS, key=lambda c: np.abs(ink - COLOURS[c]).sum()),
        x=(columns.min() + columns.max() + 1) / 2,
        y=(rows.min() + rows.max() + 1) / 2,
        height=rows.max() + 1 - rows.min())


def find(sentence, digits, size):
    """Return the digits that a sentence may mean."""
    said = PATTERN.fullmatch(sentence)
    assert said, sentence
    fits = [
        digit for digit in digits if said['noun'] in ('digit', digit['noun'])
        and said['colour'] in (None, digit['colour'])
    ]
    if said['size'] in ('biggest', 'smallest'):
        best = max if said['size'] == 'biggest' else min
        height = best(digit['height'] for digit in fits)
        # Two that hardly differ are both meant.
        fits = [
            digit for digit in fits
            if 0.9 < digit['height'] / height < 1 / 0.9
        ]
    elif said['size']:
        fits = [
            digit for digit in fits
            if (digit['height'] > 0.305 * size) == (said['size'] == 'big')
        ]
    if said['where']:
        axis = 'x' if said['where'] in ('left', 'right') else 'y'
        sign = 1 if said['where'] in ('right', 'bottom') else -1
        # Whoever is not clearly on the other side may be meant.
        fits = [
            digit for digit in fits
            if sign * (digit[axis] / size - 0.5) > -0.02
        ]
    side = said['start'] or {
        'leftmost': 'left',
        'rightmost': 'right',
        'topmost': 'top',
        'bottommost': 'bottom'
    }.get(said['extreme'])
    if side:
        axis = 'x' if side in ('left', 'right') else 'y'
        fits = sorted(
            fits,
            key=lambda digit: digit[axis],
            reverse=side in ('right', 'bottom'))
        place = dict(
            first=0, second=1, third=2, fourth=3,
            fifth=4).get(said['ordinal'], 0)
        chosen = fits[place]
        fits = [
            digit for digit in fits if abs(digit[axis] - chosen[axis]) < 2
        ]
    return fits


def test_every_sentence_means_one_digit_and_the_right_one(root):
    data = read_annotations(root / 'annotations/referring.json')
    files = {image['image_id']: image for image in data['images']}
    digits, number = {}, 0
    for ann in data['annotations']:
        image = files[ann['image_id']]
        pixels = cv2.imread(str(root / image['file_name']))[..., ::-1]
        mask = mask_utils.decode(ann['segmentation']).astype(bool)
        seen = measure(pixels, mask, ann['category_id'] - 1)
        seen['ann_id'] = ann['ann_id']
        digits.setdefault(ann['image_id'], []).append(seen)
    for ref in data['refs']:
        texts = [sentence['sent'] for sentence in ref['sentences']]
        assert 2 <= len(texts) <= 3 and len(set(texts)) == len(texts)
        for sentence in ref['sentences']:
            found = find(sentence['sent'], digits[ref['image_id']], 64)
            assert [digit['ann_id'] for digit in found] == [ref['ann_id']], \
                (sentence['sent'], digits[ref['image_id']])
            raw = sentence['raw']
            assert raw[0].isupper() and raw.lower() == f'{sentence["sent"]}.'
            assert set(sentence['sent'].split()) <= set(DIGIT_WORDS)
            number += 1
    assert number > 300


def test_files_and_splits(root):
    data = read_annotations(root / 'annotations/referring.json')
    assert (data['dataset'], data['partition']) == ('digits', 'generated')
    counts = split_counts(data)
    assert list(counts) == ['train', 'val']
    # Every scene has a ref.
    assert (counts['train'][1], counts['val'][1]) == (60, 10)
    names = [image['file_name'] for image in data['images']]
    assert names == [f'train/{i:06d}.png' for i in range(60)
                     ] + [f'val/{i:06d}.png' for i in range(10)]
    assert all((root / name).is_file() for name in names)
    # Annotations are those of the instances.
    for split, offset in (('train', 0), ('val', 60)):
        coco = json.loads(
            (root / f'annotations/instances_{split}.json').read_text())
        ours = [
            ann for ann in data['annotations']
            if (ann['image_id'] > 60) == (split == 'val')
        ]
        assert [(a['image_id'] - offset, a['segmentation']) for a in ours
                ] == [(a['image_id'], a['segmentation'])
                      for a in coco['annotations']]
    lists = [(root / f'splits/referring.seed0-fold0@50{part}.txt'
              ).read_text().split() for part in ('', '-unlabeled')]
    assert len(lists[0]) == 30
    assert sorted(sum(lists, [])) == names[:60]
    assert lists[0] == [
        f'train/{name}.png' for name in (
            root / 'splits/train.seed0-fold0@50.txt').read_text().split()
    ]


def test_equal_arguments_give_equal_bytes(root, tmp_path):
    options = dict(num_train=60, num_val=10, percents=(50, ))
    again = make_digits(tmp_path / 'a', referring=True, **options)
    assert checksum(again) == checksum(root)
    assert (again / 'annotations/referring.json').read_bytes() == (
        root / 'annotations/referring.json').read_bytes()
    # Reused as it is, refused for other scenes and when changed.
    assert make_digits(again, referring=True, **options) == again
    with pytest.raises(FileExistsError, match='annotation_format|other param'):
        make_digits(again, digits_per_scene=(2, 3), referring=True, **options)
    (again / 'annotations/referring.json').write_text('{}')
    with pytest.raises(FileExistsError, match='changed after'):
        make_digits(again, referring=True, **options)


def test_scenes_without_expressions_stay_as_they_were(tmp_path):
    plain = make_digits(
        tmp_path, num_train=3, num_val=1, percents=(100, ))
    assert not (plain / 'annotations/referring.json').exists()
    assert not list((plain / 'splits').glob('referring*'))
    info = json.loads((plain / 'digits.json').read_text())
    assert 'annotation_format' not in info['parameters']
    assert info['parameters']['digits_per_scene'] == [1, 3]


def test_scenes_have_named_colours_and_two_sizes():
    composer = ReferringSceneComposer('train')
    heights, repeats, colours = [], 0, set()
    for seed in range(60):
        scene = composer.compose(np.random.default_rng(seed))
        assert 2 <= len(scene.labels) <= 4
        assert len(scene.colors) == len(scene.labels)
        repeats += len(set(scene.labels.tolist())) < len(scene.labels)
        colours |= set(scene.colors)
        for mask, colour in zip(scene.masks, scene.colors):
            seen = measure(scene.image, mask, 0)
            assert seen['colour'] == colour
            heights.append(seen['height'] / 64)
    assert colours == set(COLOURS)
    assert 20 < repeats < 60
    heights = np.array(heights)
    assert 0.3 < (heights >= 0.33).mean() < 0.7
    assert 0.3 < (heights <= 0.28).mean() < 0.7


def make_scene(*digits, size=32):
    """Return a scene of boxes (label, colour, x, y, height)."""
    masks = np.zeros((len(digits), size, size), bool)
    for mask, (_, _, x, y, height) in zip(masks, digits):
        mask[y:y + height, x:x + 4] = True
    return DigitScene(
        np.zeros((size, size, 3), np.uint8), masks,
        np.array([digit[0] for digit in digits]),
        tuple(digit[1] for digit in digits))


def texts(scene):
    return [{e.text for e in found} for found in describe_digits(scene)]


def test_expressions_of_a_scene():
    left, right = texts(
        make_scene((7, 'red', 2, 4, 12), (7, 'blue', 24, 20, 7)))
    assert 'the seven' not in left | right and 'the digit' not in left | right
    assert {
        'the red seven', 'the red digit', 'the leftmost seven',
        'the big seven', 'the biggest digit', 'the seven on the left',
        'the first digit from the left', 'the second seven from the right',
        'the topmost digit', 'the red digit at the top'
    } <= left
    assert {'the small blue seven', 'the second digit from the top'} <= right
    assert not left & right
    # One alone is not leftmost of its kind.
    assert 'the leftmost red seven' not in left


def test_margins():
    # Equal heights, hardly apart from left to right, both in the middle.
    first, second = texts(
        make_scene((1, 'red', 14, 2, 10), (2, 'red', 15, 20, 10)))
    both = first | second
    for word in ('left', 'right', 'big', 'small', 'most red', 'red digit '):
        allowed = ('top', 'bottom')
        assert not [
            text for text in both
            if word in text and not any(a in text for a in allowed)
        ]
    assert 'the one' in first and 'the topmost red digit' in first
    # Neither clearly big nor small: no other is the big one either.
    scene = make_scene((3, 'red', 2, 2, 12), (3, 'red', 24, 2, 10))
    assert not [t for t in set().union(*texts(scene)) if 'big ' in t]
    # A neighbour that is not clearly off the left side.
    scene = make_scene((3, 'red', 4, 2, 12), (3, 'red', 13, 2, 12))
    assert not [t for t in set().union(*texts(scene)) if 'on the left' in t]


def test_no_colours_no_expressions():
    scene = DigitSceneComposer('val').compose(np.random.default_rng(0))
    with pytest.raises(ValueError, match='names of colours'):
        describe_digits(scene)


def test_drawn_sentences_are_of_different_kinds():
    found = describe_digits(
        make_scene((7, 'red', 2, 4, 12), (7, 'blue', 24, 20, 7)))[0]
    kinds = {e.text: e.kind for e in found}
    orders = set()
    for seed in range(20):
        drawn = draw_sentences(found, 3, np.random.default_rng(seed))
        assert len({kinds[text] for text in drawn}) == 3
        orders.add(tuple(drawn))
    assert len(orders) > 10
    everything = draw_sentences(found, 1000, np.random.default_rng(0))
    assert sorted(everything) == sorted(kinds)
    assert draw_sentences([], 3, np.random.default_rng(0)) == []


def test_words():
    assert len(DIGIT_WORDS) == len(set(DIGIT_WORDS)) == 38
    assert list(DIGIT_WORDS) == sorted(DIGIT_WORDS)


@pytest.mark.parametrize('options, message', [
    (dict(long_tail=2.), 'long_tail must be 1 with referring .* got 2.0'),
    (dict(digits_per_scene=(1, 3)), r'within 2 and 5 .* got \(1, 3\)'),
    (dict(digits_per_scene=(2, 6)), r'within 2 and 5'),
    (dict(image_size=40), 'image_size must be an integer of at least 48'),
])
def test_refused_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_digits(tmp_path / 'x', referring=True, **options)
    assert not (tmp_path / 'x').exists()


def test_tool(tmp_path, monkeypatch, capsys):
    tool = str(ROOT / 'tools/dataset_converters/make_digits.py')
    monkeypatch.setattr(sys, 'argv', [
        tool,
        str(tmp_path / 'd'), '--referring', '--num-train', '4', '--num-val',
        '1', '--percents', '100', '--quiet'
    ])
    runpy.run_path(tool, run_name='__main__')
    assert 'Digit scenes in' in capsys.readouterr().out
    assert (tmp_path / 'd/annotations/referring.json').is_file()
