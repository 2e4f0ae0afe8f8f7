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

from mmsemi.datasets.digit_scenes import (DIGIT_CLASSES, DigitSceneComposer,
                                          class_frequencies, load_handwriting)
from mmsemi.datasets.digits import checksum, make_digits

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(num_train=24, num_val=6, percents=(50, 100))


@pytest.fixture(scope='module')
def digits_root(tmp_path_factory):
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', **SMALL)


def read_json(path):
    return json.loads(Path(path).read_text())


def files_of(root):
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in Path(root).rglob('*') if file.is_file()
    }


def test_handwriting_is_disjoint_and_complete():
    train, val = load_handwriting('train'), load_handwriting('val')
    assert sum(map(len, train)) + sum(map(len, val)) == 1797
    for ours, theirs in zip(train, val):
        assert len(theirs) == (len(ours) + len(theirs)) // 4
        seen = {sample.tobytes() for sample in ours}
        assert not any(sample.tobytes() in seen for sample in theirs)
    assert train[0].shape[1:] == (8, 8)
    assert max(sample.max() for sample in train) == 1
    with pytest.raises(ValueError, match="split must be .* got 'test'"):
        load_handwriting('test')


def test_class_frequencies_decay_exponentially():
    balanced = class_frequencies(1)
    np.testing.assert_allclose(balanced, np.full(10, 0.1))
    tail = class_frequencies(50)
    assert tail.sum() == pytest.approx(1)
    assert tail[0] / tail[9] == pytest.approx(50)
    np.testing.assert_allclose(tail[1:] / tail[:-1], 50**(-1 / 9))


@pytest.mark.parametrize('digits_per_scene', [(1, 3), (2, 2), (8, 8)])
def test_scene_is_consistent(digits_per_scene):
    composer = DigitSceneComposer('train', digits_per_scene=digits_per_scene)
    for seed in range(20):
        scene = composer.compose(np.random.default_rng(seed))
        low, high = digits_per_scene
        assert low <= len(scene.labels) <= high
        assert scene.image.shape == (64, 64, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.labels), 64, 64)
        assert scene.masks.dtype == bool
        ground = ~scene.masks.any(axis=0)
        for mask in scene.masks:
            contrast = scene.image[mask].mean() - scene.image[ground].mean()
            assert contrast > 30
        # Each pixel belongs to the digit on top only.
        assert scene.masks.sum(axis=0).max() == 1
        assert scene.masks.any(axis=(1, 2)).all()


def test_later_digit_hides_the_earlier():
    composer = DigitSceneComposer(
        'train', digits_per_scene=(2, 2), max_overlap=0.5)
    layout = [((slice(10, 30), slice(10, 30)), np.ones((20, 20))),
              ((slice(25, 45), slice(20, 40)), np.ones((20, 20)))]
    composer._layout = lambda labels, rng: layout
    first, second = composer.compose(np.random.default_rng(0)).masks
    assert second.sum() == 400 and second[25:45, 20:40].all()
    assert first.sum() == 350 and not first[25:30, 20:30].any()
    assert first[10:25, 10:30].all() and first[25:30, 10:20].all()


def test_overlap_is_limited():
    composer = DigitSceneComposer(
        'train', digits_per_scene=(5, 5), max_overlap=0)
    visible = [
        composer._layout(np.array([8, 8, 8, 8, 8]), np.random.default_rng(i))
        for i in range(10)
    ]
    found = 0
    for layout in filter(None, visible):
        found += 1
        cover = np.zeros((64, 64), int)
        for window, alpha in layout:
            cover[window] += alpha > 0.5
        assert cover.max() == 1
    assert found


def test_long_tail_is_in_the_scenes():
    composer = DigitSceneComposer('train', long_tail=100)
    labels = np.concatenate([
        composer.compose(np.random.default_rng(i)).labels for i in range(300)
    ])
    counts = np.bincount(labels, minlength=10)
    assert abs(counts[0] / len(labels) - class_frequencies(100)[0]) < 0.08
    assert counts[:3].sum() > 5 * counts[7:].sum()


def test_files(digits_root):
    for split, number in (('train', 24), ('val', 6)):
        coco = read_json(digits_root / f'annotations/instances_{split}.json')
        assert [i['id'] for i in coco['images']] == list(range(1, number + 1))
        assert [(c['id'], c['name']) for c in coco['categories']
                ] == list(enumerate(DIGIT_CLASSES, 1))
        ids = [ann['id'] for ann in coco['annotations']]
        assert ids == list(range(1, len(ids) + 1))
        for image in coco['images']:
            name = image['file_name']
            picture = cv2.imread(str(digits_root / split / name))
            assert picture.shape == (64, 64, 3)
            expected = np.zeros((64, 64), np.uint8)
            anns = [
                ann for ann in coco['annotations']
                if ann['image_id'] == image['id']
            ]
            assert 1 <= len(anns) <= 3
            for ann in anns:
                mask = mask_utils.decode(ann['segmentation']).astype(bool)
                rows, columns = np.nonzero(mask)
                assert ann['area'] == mask.sum()
                assert ann['bbox'] == [
                    columns.min(),
                    rows.min(), columns.max() + 1 - columns.min(),
                    rows.max() + 1 - rows.min()
                ]
                assert ann['iscrowd'] == 0
                expected[mask] = ann['category_id']
            label_map = cv2.imread(
                str(digits_root / 'masks' / split / name),
                cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(label_map, expected)


def test_images_are_stored_as_rgb(digits_root):
    scene = DigitSceneComposer('train').compose(
        np.random.default_rng([0, 0, 0]))
    stored = cv2.imread(str(digits_root / 'train/000000.png'))
    np.testing.assert_array_equal(stored[..., ::-1], scene.image)


def test_splits_keep_hidden_labels(digits_root):
    folder = digits_root / 'annotations'
    whole = read_json(folder / 'instances_train.json')
    labeled = read_json(folder / 'instances_train.seed0-fold0@50.json')
    hidden = read_json(folder /
                       'instances_train.seed0-fold0@50-unlabeled.json')
    assert len(labeled['images']) == len(hidden['images']) == 12
    assert len(labeled['annotations']) + len(
        hidden['annotations']) == len(whole['annotations'])
    full = read_json(folder / 'instances_train.seed0-fold0@100.json')
    assert full == whole


def test_list_files_hold_the_same_split(digits_root):
    names = {}
    for stem in ('train.seed0-fold0@50', 'train.seed0-fold0@100'):
        for part in ('', '-unlabeled'):
            text = (digits_root / f'splits/{stem}{part}.txt').read_text()
            coco = read_json(digits_root /
                             f'annotations/instances_{stem}{part}.json')
            names[stem + part] = text.splitlines()
            assert text == ''.join(
                f'{image["file_name"][:-4]}\n' for image in coco['images'])
    assert [len(part) for part in names.values()] == [12, 12, 24, 0]
    val = (digits_root / 'splits/val.txt').read_text()
    assert val == ''.join(f'{i:06d}\n' for i in range(6))


def test_lists_are_added_to_older_data(tmp_path):
    root = make_digits(tmp_path / 'digits', **SMALL)
    before = files_of(root)
    for file in (root / 'splits').iterdir():
        file.unlink()
    (root / 'splits').rmdir()
    make_digits(root, **SMALL)
    assert files_of(root) == before
    # A list that was changed is not replaced in silence.
    (root / 'splits/val.txt').write_text('000001\n')
    with pytest.raises(FileExistsError, match='val.txt exists with other'):
        make_digits(root, **SMALL)


def test_same_seed_gives_the_same_bytes(digits_root, tmp_path):
    again = make_digits(tmp_path / 'a', **SMALL)
    assert files_of(again) == files_of(digits_root)
    other = make_digits(tmp_path / 'b', **SMALL, seed=1)
    assert checksum(other) != checksum(digits_root)
    # Permissions are the usual ones, not those of a temporary folder.
    plain = tmp_path / 'plain'
    plain.mkdir()
    assert again.stat().st_mode == plain.stat().st_mode


def test_scene_does_not_depend_on_the_number_of_scenes(digits_root, tmp_path):
    more = make_digits(tmp_path / 'a', num_train=25, num_val=6, percents=())
    for name in ('train/000023.png', 'masks/train/000023.png'):
        assert (more / name).read_bytes() == (digits_root / name).read_bytes()


def test_data_that_are_there_are_reused(tmp_path):
    options = dict(num_train=24, num_val=1, percents=())
    root = make_digits(tmp_path / 'digits', **options)
    before = (root / 'digits.json').stat().st_mtime_ns
    make_digits(root, **options)
    assert (root / 'digits.json').stat().st_mtime_ns == before
    # Splits can be added to data that are there.
    options['percents'] = (50, )
    make_digits(root, **options, split_seeds=(3, ))
    assert (root / 'digits.json').stat().st_mtime_ns == before
    assert (root /
            'annotations/instances_train.seed3-fold0@50.json').is_file()


def test_other_data_are_refused(tmp_path):
    options = dict(num_train=2, num_val=1, percents=())
    root = make_digits(tmp_path / 'digits', **options)
    message = r'other parameters \(seed: 0 there, 5 asked for\)'
    with pytest.raises(FileExistsError, match=message):
        make_digits(root, **options, seed=5)
    (root / 'val/000000.png').write_bytes(b'changed')
    with pytest.raises(FileExistsError, match='changed after'):
        make_digits(root, **options)
    (root / 'digits.json').write_text('{')
    with pytest.raises(FileExistsError, match='damaged'):
        make_digits(root, **options)
    make_digits(root, **options, seed=5, overwrite=True)
    fresh = make_digits(tmp_path / 'fresh', **options, seed=5)
    assert files_of(root) == files_of(fresh)
    # Nothing temporary is left beside the data.
    assert sorted(p.name for p in tmp_path.iterdir()) == ['digits', 'fresh']


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='not made by mmsemi'):
            make_digits(tmp_path, overwrite=overwrite)
    assert (tmp_path / 'thesis.txt').read_text() == 'mine'
    with pytest.raises(FileExistsError, match='must be a folder'):
        make_digits(tmp_path / 'thesis.txt')
    empty = tmp_path / 'empty'
    empty.mkdir()
    make_digits(empty, num_train=1, num_val=1, percents=())
    assert (empty / 'digits.json').is_file()


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match='percents: percent=1 '):
        make_digits(tmp_path / 'a', num_train=10, num_val=1, percents=(1, ))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('options, message', [
    (dict(num_train=0), 'num_train must be an integer of at least 1, got 0'),
    (dict(num_val=2.5), 'num_val must be .* got 2.5'),
    (dict(num_val=True), 'num_val must be .* got True'),
    (dict(seed=-1), 'seed must be .* at least 0, got -1'),
    (dict(image_size=16), 'image_size must be .* at least 25 .* got 16'),
    (dict(image_size=64.0), 'image_size must be an integer .* got 64.0'),
    (dict(image_size=64, digits_per_scene=(1, 20)), 'image_size .*least 65'),
    (dict(digits_per_scene=(3, 1)), r'least <= most, got \(3, 1\)'),
    (dict(digits_per_scene=(0, 1)), r'digits_per_scene\[0\] .* got 0'),
    (dict(digits_per_scene=3), 'digits_per_scene must be two .* got 3'),
    (dict(digits_per_scene=(1, 2, 3)), 'digits_per_scene must be two'),
    (dict(long_tail=0.5), 'long_tail must be .* got 0.5'),
    (dict(long_tail=float('nan')), 'long_tail must be .* got nan'),
    (dict(max_overlap=0.6), 'max_overlap must be .* got 0.6'),
    (dict(percents=(0, )), 'percents must be .* got 0'),
    (dict(split_seeds=(-2, )), 'split_seeds must be .* got -2'),
])
def test_bad_values_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_digits(tmp_path / 'digits', **options)
    assert list(tmp_path.iterdir()) == []


def test_crowded_scene_says_what_to_change():
    composer = DigitSceneComposer('train', digits_per_scene=(1, 1))
    composer.digits_per_scene = (40, 40)
    with pytest.raises(RuntimeError, match='40 digits found no place'):
        composer.compose(np.random.default_rng(0))


def test_command_line(tmp_path, monkeypatch, capsys):
    tool = ROOT / 'tools/dataset_converters/make_digits.py'

    def run(*options):
        monkeypatch.setattr(
            sys, 'argv', [str(tool), str(tmp_path / 'digits'), *options])
        runpy.run_path(str(tool), run_name='__main__')

    run('--num-train', '20', '--num-val', '2', '--percents', '50',
        '--digits-per-scene', '2', '2')
    coco = read_json(tmp_path / 'digits/annotations/instances_train.json')
    assert len(coco['annotations']) == 40
    assert 'Digit scenes in' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        run('--num-train', '0')
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert 'num_train must be an integer of at least 1, got 0' in message


def test_mmdet_reads_the_same_masks(digits_root):
    from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS
    from mmdet.utils import register_all_modules

    from mmsemi.datasets.digits_instance import DigitsInstanceDataset
    register_all_modules(init_default_scope=False)
    dataset = DigitsInstanceDataset(
        data_root=str(digits_root),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=[])
    assert len(dataset) == 24
    assert dataset.metainfo['classes'] == DIGIT_CLASSES
    assert len(set(dataset.metainfo['palette'])) == 10
    load = MMDET_TRANSFORMS.build(
        dict(
            type='mmdet.LoadAnnotations',
            with_bbox=True,
            with_mask=True,
            poly2mask=True))
    composer = DigitSceneComposer('train')
    for index in range(3):
        info = dataset[index]
        info['ori_shape'] = (info['height'], info['width'])
        results = load(info)
        scene = composer.compose(np.random.default_rng([0, 0, index]))
        np.testing.assert_array_equal(results['gt_masks'].masks.astype(bool),
                                      scene.masks)
        np.testing.assert_array_equal(results['gt_bboxes_labels'],
                                      scene.labels)
        assert not results['gt_ignore_flags'].any()


def test_missing_annotations_name_the_command(tmp_path):
    from mmsemi.datasets.digits_instance import DigitsInstanceDataset
    with pytest.raises(
            FileNotFoundError,
            match=f'make_digits.py {re.escape(str(tmp_path))}'):
        DigitsInstanceDataset(
            data_root=str(tmp_path), ann_file='annotations/none.json')


def test_few_shot_splits(tmp_path):
    """At least K instances of each digit, in two formats; added later too."""
    root = tmp_path / 'digits'
    options = dict(num_train=60, num_val=2, percents=(), image_size=48)
    make_digits(root, digits_per_scene=(1, 2), **options)
    make_digits(
        root, digits_per_scene=(1, 2), shots=(1, 3), split_seeds=(0, 1),
        **options)
    for shots in (1, 3):
        for seed in (0, 1):
            stem = f'seed{seed}-fold0@{shots}shot'
            labeled, unlabeled = (
                read_json(root / f'annotations/instances_train.{stem}{end}')
                for end in ('.json', '-unlabeled.json'))
            counts = np.bincount(
                [ann['category_id'] for ann in labeled['annotations']],
                minlength=11)[1:]
            assert counts.min() >= shots and counts.sum() <= 20 * shots
            # To measure pseudo-labels with.
            assert unlabeled['annotations']
            assert len(labeled['images']) + len(unlabeled['images']) == 60
            lines = (root / f'splits/train.{stem}.txt').read_text().split()
            assert len(lines) == len(labeled['images'])
    with pytest.raises(ValueError, match='shots: shots=1000, but these'):
        make_digits(root, digits_per_scene=(1, 2), shots=(1000, ), **options)
    with pytest.raises((TypeError, ValueError), match='shots'):
        make_digits(root, digits_per_scene=(1, 2), shots=(0, ), **options)
