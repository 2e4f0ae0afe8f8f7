# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope

from mmsemi.datasets import (MultiSourceDataset, MultiSourceSampler,
                             ReferringDataset)
from mmsemi.datasets.refer_files import write_annotations

VIEWS = ['sup', 'unsup_teacher', 'unsup_student']
LOAD = dict(type='LoadImageFromFile')
MASK = dict(type='mmsemi.LoadReferringMask')
PACK = dict(type='mmsemi.PackSegInputs')
LABELED = [
    LOAD, MASK,
    dict(type='mmsemi.ResizeTo', scale=(16, 12)),
    dict(type='mmsemi.FlipWithWords', directions='swap'),
    dict(type='mmsemi.MultiBranch', branch_field=VIEWS, sup=[PACK])
]
UNLABELED = [
    LOAD,
    dict(type='mmsemi.ResizeTo', scale=(16, 12)),
    dict(type='mmsemi.FlipWithWords', directions='swap'),
    dict(
        type='mmsemi.MultiBranch',
        branch_field=VIEWS,
        unsup_teacher=[PACK],
        unsup_student=[dict(type='mmsemi.ColorJitter'), PACK])
]


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@pytest.fixture
def root(tmp_path):
    """Four images of 10 x 8 pixels: two of train, two objects each."""
    images, annotations, refs = [], [], []
    for image in range(4):
        name = f'{image}.png'
        pixels = np.random.RandomState(image).randint(0, 256, (8, 10, 3))
        cv2.imwrite(str(tmp_path / name), pixels)
        images.append(
            dict(image_id=image, file_name=name, height=8, width=10))
        for side in range(2):
            number = 2 * image + side
            left = 1 + 5 * side
            box = [left, 2, 3, 4]
            annotations.append(
                dict(
                    ann_id=number,
                    image_id=image,
                    category_id=1,
                    area=12,
                    bbox=box,
                    segmentation=[[
                        left, 2, left + 3, 2, left + 3, 6, left, 6
                    ]]))
            where = ('left', 'right')[side]
            refs.append(
                dict(
                    ref_id=number,
                    ann_id=number,
                    image_id=image,
                    split='train' if image < 3 else 'val',
                    sentences=[
                        dict(
                            sent_id=10 * number + i,
                            raw=text.upper(),
                            sent=text) for i, text in enumerate(
                                [f'{where} one', f'box {number}', 'thing'])
                    ]))
    write_annotations(
        dict(
            version=1,
            dataset='mine',
            partition='all',
            images=images,
            annotations=annotations,
            refs=refs), tmp_path / 'mine.json')
    (tmp_path / 'labeled.txt').write_text('0.png\n')
    (tmp_path / 'unlabeled.txt').write_text('1.png\n2.png\n')
    return tmp_path


def build(root, **options):
    # Serialised data sets collect garbage first, which takes seconds.
    return ReferringDataset(
        ann_file='mine.json',
        data_root=str(root),
        serialize_data=False,
        **options)


def test_a_sample_is_a_ref_and_its_sentence_is_drawn_per_access(root):
    dataset = build(root)
    assert len(dataset) == 6
    assert dataset.metainfo['classes'] == ('background', 'referred')
    sample = dataset[3]
    assert sample.pop('text') in ('right one', 'box 3', 'thing')
    assert sample.pop('sent_id') in (30, 31, 32)
    assert sample == dict(
        img_path=str(root / '1.png'),
        height=8,
        width=10,
        image_id=1,
        ref_id=3,
        ref_mask=[[6, 2, 9, 2, 9, 6, 6, 6]],
        reduce_zero_label=False,
        label_map=None,
        seg_fields=[],
        sample_idx=3)
    np.random.seed(0)
    drawn = [dataset[3]['text'] for _ in range(30)]
    assert set(drawn) == {'right one', 'box 3', 'thing'}
    np.random.seed(0)
    assert [dataset[3]['text'] for _ in range(30)] == drawn
    assert dataset.get_size(0) == (10, 8)


def test_sentences_and_texts(root):
    samples = list(build(root, split='val', sentence='all', text_field='raw'))
    assert [(s['ref_id'], s['sent_id'], s['text']) for s in samples] == [
        (6, 60, 'LEFT ONE'), (6, 61, 'BOX 6'), (6, 62, 'THING'),
        (7, 70, 'RIGHT ONE'), (7, 71, 'BOX 7'), (7, 72, 'THING')
    ]
    # No draw, so the random state stays.
    np.random.seed(1)
    first = build(root, split='val', sentence='first')
    assert [s['text'] for s in first] == ['left one', 'right one']
    assert np.random.rand() == np.random.RandomState(1).rand()


def test_parts(root):
    labeled = build(root, image_list='labeled.txt')
    unlabeled = build(root, image_list='unlabeled.txt', labeled=False)
    assert [s['ref_id'] for s in labeled] == [0, 1]
    assert [s['ref_id'] for s in unlabeled] == [2, 3, 4, 5]
    assert all('ref_mask' in s for s in labeled)
    assert not any('ref_mask' in s for s in unlabeled)
    assert all(s['text'] for s in unlabeled)


@pytest.mark.parametrize('options, message', [
    (dict(sentence='some'), "sentence must be one of .* got 'some'"),
    (dict(text_field='tokens'), 'text_field must be one of'),
    (dict(split='testA'), r"split='testA' has no ref .*\['train', 'val'\]"),
    (dict(split='val', image_list='labeled.txt'),
     r'1 of 1 images of .*labeled.txt .* have no ref in the split .*0.png'),
    (dict(labeled=False, pipeline=[LOAD, MASK]), 'remove mmsemi.LoadRef'),
])
def test_refused_options(root, options, message):
    with pytest.raises(ValueError, match=message):
        build(root, **options)


def test_refused_lists(root):
    with pytest.raises(FileNotFoundError, match='no list of images .*nil'):
        build(root, image_list='nil.txt')
    for text, message in (('\n', 'names no image'), ('0.png\n0.png',
                                                     'name twice')):
        (root / 'bad.txt').write_text(text)
        with pytest.raises(ValueError, match=message):
            build(root, image_list='bad.txt')
    with pytest.raises(FileNotFoundError, match='refer2json'):
        ReferringDataset(ann_file='nil.json', data_root=str(root))


# As a source --------------------------------------------------------------


def sources(root):
    common = dict(
        type='mmsemi.ReferringDataset',
        ann_file='mine.json',
        data_root=str(root),
        serialize_data=False)
    return MultiSourceDataset([
        dict(common, image_list='labeled.txt', pipeline=LABELED),
        dict(
            common,
            image_list='unlabeled.txt',
            labeled=False,
            pipeline=UNLABELED)
    ])


def stream(dataset, start, number):
    sampler = MultiSourceSampler(dataset, 4, [1, 1], seed=5)
    sampler.skip(start)
    return [dataset[index] for index, _ in zip(sampler, range(number))]


def test_labelled_and_unlabelled_views(root):
    for position, sample in enumerate(stream(sources(root), 0, 8)):
        views = sample['data_samples']
        if position % 4 < 2:
            assert views['unsup_teacher'] is None
            sup = views['sup']
            assert sup.gt_sem_seg.data.shape == (1, 12, 16)
            assert sup.image_id == 0 and sup.ref_id in (0, 1)
            assert sup.sent_id // 10 == sup.ref_id
            # The words were swapped with the image.
            columns = sup.gt_sem_seg.data[0].any(dim=0).nonzero().flatten()
            on_left = bool(columns.float().mean() < 8)
            if 'one' in sup.text:
                assert sup.text == f'{("right", "left")[on_left]} one'
        else:
            assert views['sup'] is None
            teacher, student = (views[v] for v in VIEWS[1:])
            assert teacher.text == student.text
            assert (teacher.ref_id, teacher.sent_id) == (student.ref_id,
                                                         student.sent_id)
            assert 'gt_sem_seg' not in teacher
            # Maps the loaded image to the view.
            matrix = teacher.homography_matrix
            sign = -1 if teacher.flip else 1
            assert matrix[0, 0] == pytest.approx(1.6 * sign)
            assert matrix[0, 2] == pytest.approx(16. if sign < 0 else 0.)
            assert matrix[1, 1] == pytest.approx(1.5)


def test_a_resumed_stream_draws_the_same_sentences_and_views(root):
    whole = stream(sources(root), 0, 24)
    # Other draws in between change nothing.
    np.random.seed(77)
    resumed = stream(sources(root), 12, 12)
    texts = []
    for first, second in zip(whole[12:], resumed):
        for view in VIEWS:
            if first['inputs'][view] is None:
                continue
            assert torch.equal(first['inputs'][view], second['inputs'][view])
            ours, theirs = (s['data_samples'][view] for s in (first, second))
            assert (ours.text, ours.sent_id) == (theirs.text, theirs.sent_id)
            texts.append((ours.ref_id, ours.sent_id))
    # One ref is seen with several sentences.
    assert len(set(texts)) > len({ref for ref, _ in texts})


def test_registered(root):
    dataset = DATASETS.build(
        dict(
            type='mmsemi.ReferringDataset',
            ann_file=str(root / 'mine.json'),
            data_prefix=dict(img_path=str(root)),
            split='val',
            sentence='all',
            test_mode=True,
            pipeline=[
                LOAD,
                dict(type='mmsemi.ResizeTo', scale=(16, 12)), MASK, PACK
            ]))
    sample = dataset[4]
    # The mask keeps the size of the file's image.
    assert sample['inputs'].shape == (3, 12, 16)
    assert sample['data_samples'].gt_sem_seg.data.shape == (1, 8, 10)
    assert sample['data_samples'].ori_shape == (8, 10)
    assert sample['data_samples'].gt_sem_seg.data.sum() == 12


def test_images_of_another_size_are_refused(root):
    cv2.imwrite(str(root / '0.png'), np.zeros((9, 10, 3), np.uint8))
    with pytest.raises(ValueError, match=r'0.png has \(9, 10\) .*\(8, 10\)'):
        build(root, pipeline=[LOAD, MASK])[0]
