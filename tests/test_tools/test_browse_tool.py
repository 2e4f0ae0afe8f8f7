# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import numpy as np
from PIL import Image

HIDDEN_LABELS = '''
unlabeled_dataset.update(
    type='mmsemi.DigitsInstanceDataset',
    ann_file='annotations/instances_train.json',
    data_prefix=dict(img='train/'))
unlabeled_dataset.pop('img_dir')
unlabeled_dataset['pipeline'].insert(1, load[1])
'''


def test_views_are_drawn_side_by_side(write_config, run_tool, tmp_path):
    config = write_config()
    folders = [tmp_path / 'first', tmp_path / 'second']
    for folder in folders:
        done = run_tool('browse_dataset', config, '--output-dir', folder,
                        '--number', 4)
        assert done.code == 0, done.err
        assert f'4 pictures in {folder}' in done.out
    names = sorted(path.name for path in folders[0].iterdir())
    # The sampler takes one labelled and one unlabelled image in turn.
    assert [name.rsplit('_', 1)[0] for name in names] == [
        '0000_sup', '0001_unsup_teacher', '0002_sup', '0003_unsup_teacher'
    ]
    sup, unsup = (
        np.array(Image.open(folders[0] / name)) for name in names[:2])
    # 64 pixels are drawn six times as large: one view, and two.
    assert sup.shape[1] < 2 * 384 < unsup.shape[1]
    for name in names:
        first, second = (
            np.array(Image.open(folder / name)) for folder in folders)
        assert np.array_equal(first, second)


def test_hidden_labels_are_drawn(write_config, run_tool, tmp_path):
    configs = dict(
        hidden=write_config(HIDDEN_LABELS), none=write_config(name='none'))
    pictures = []
    for name, path in configs.items():
        done = run_tool('browse_dataset', path, '--output-dir',
                        tmp_path / name, '--number', 2)
        assert done.code == 0, done.err
        picture, = (tmp_path / name).glob('0001_unsup_teacher_*.png')
        pictures.append((picture.name, np.array(Image.open(picture))))
    assert pictures[0][0] == pictures[1][0]
    assert not np.array_equal(pictures[0][1], pictures[1][1])


def test_number_must_be_positive(write_config, run_tool):
    done = run_tool('browse_dataset', write_config(), '--number', 0)
    assert done.code == 2
    assert '--number 0: allowed are numbers from 1.' in done.err
