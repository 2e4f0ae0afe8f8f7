# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsemi.datasets import KNOWN_SPLITS, KnownSplit, set_hash

TOOL = str(
    Path(__file__).resolve().parents[2] /
    'tools/dataset_converters/convert_semantic_splits.py')
IDS = [f'2007_{i:06d}' for i in range(8)]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):

    def run_tool(*options):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [TOOL, *map(str, options)])
        runpy.run_path(TOOL, run_name='__main__')
        return capsys.readouterr()

    return run_tool


@pytest.fixture
def lists(tmp_path):
    (tmp_path / 'l.txt').write_text('\n'.join(
        f'JPEGImages/{i}.jpg SegmentationClass/{i}.png' for i in IDS[:3]))
    (tmp_path / 'all.txt').write_text('\n'.join(IDS))
    (tmp_path / 'v.txt').write_text('2008_000000')
    return tmp_path


def test_convert(run, lists, monkeypatch):
    monkeypatch.setitem(KNOWN_SPLITS, set_hash(IDS[:3]),
                        KnownSplit('voc', 'blended-cps', '1/8', 3))
    out = run('convert', '--labeled', 'l.txt', '--train', 'all.txt', '--val',
              'v.txt', '--out-dir', 'out')
    assert 'voc: blended-cps 1/8' in out.out
    assert 'blended-cps-1over8-unlabeled.txt: 5 images' in out.out
    # The published number of unlabelled images is another one.
    assert 'warning: ' in out.err and '10579 unlabelled' in out.err
    files = {p.name: p.read_text() for p in (lists / 'out').iterdir()}
    assert files == {
        'blended-cps-1over8.txt': '\n'.join(IDS[:3]) + '\n',
        'blended-cps-1over8-unlabeled.txt': '\n'.join(IDS[3:]) + '\n'
    }


def test_convert_the_labelled_list_alone(run, lists):
    out = run('convert', '--labeled', 'l.txt', '--out-dir', 'out')
    assert 'voc: no published split' in out.out and 'hash' in out.err
    assert [p.name for p in (lists / 'out').iterdir()] == ['l.txt']
    run('convert', '--labeled', 'l.txt', '--out-dir', 'out', '--name', 'mine')
    assert (lists / 'out/mine.txt').is_file()


@pytest.mark.parametrize('options, message', [
    (['--labeled', 'none.txt'], 'There is no list file none.txt'),
    (['--labeled', 'l.txt', '--unlabeled', 'all.txt'], 'share 3 images'),
    (['--labeled', 'l.txt', '--val', 'all.txt'], 'validation list share 3'),
    (['--labeled', 'l.txt', '--data-root', '.'],
     '3 of 3 labelled images do not exist.*SegmentationClassAug'),
])
def test_convert_refuses(run, lists, options, message):
    with pytest.raises(SystemExit, match=f'(?s)convert_semantic.*{message}'):
        run('convert', '--out-dir', 'out', *options)
    assert not (lists / 'out').exists()


def make_folder(root, number=20):
    for i in range(number):
        for kind in ('img', 'ann'):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(np.full((2, 2), i % 4, np.uint8)).save(
                root / kind / f'{i:02d}.png')


def test_new(run, tmp_path):
    make_folder(tmp_path)
    options = ('new', '--img-dir', 'img', '--mask-dir', 'ann', '--img-suffix',
               '.png', '--out-dir', 'out', '--quiet')
    out = run(*options, '--percent', 20, 50, '--seed', 0, 1)
    assert 'train.seed0-fold0@20.txt: 4 images, 4 of 4 classes' in out.out
    names = {p.name for p in (tmp_path / 'out').iterdir()}
    assert names == {
        f'train.seed{seed}-fold0@{percent}{part}.txt'
        for seed in (0, 1) for percent in (20, 50)
        for part in ('', '-unlabeled')
    }
    labeled, rest = (
        (tmp_path / f'out/train.seed0-fold0@20{part}.txt').read_text()
        for part in ('', '-unlabeled'))
    both = labeled.splitlines() + rest.splitlines()
    assert sorted(both) == [f'{i:02d}' for i in range(20)]
    (tmp_path / 'some.txt').write_text('00\n01\n02\n03\n04\n')
    (tmp_path / 'val.txt').write_text('10\n04\n')
    run(*options, '--count', 4, '--train', 'some.txt', '--name', 'few')
    assert (tmp_path / 'out/few.seed0-fold0@4images-unlabeled.txt').is_file()
    for more, message in ((('--percent', 1), 'less than one image'),
                          (('--count', 3), 'too few to hold all 4 classes'),
                          (('--count', 4, '--val', 'val.txt'),
                           'training and the validation list share 2'),
                          (('--count', 4, '--mask-suffix', '.gif'),
                           '20 of 20 masks do not exist')):
        with pytest.raises(SystemExit, match=message):
            run(*options, *more)
    run(*options, '--count', 3, '--drop-classes')


def test_help_and_wrong_use(run, capsys):
    for options in (['--help'], ['convert', '--help'], ['new', '--help']):
        with pytest.raises(SystemExit) as stop:
            run(*options)
        assert stop.value.code == 0
        assert 'convert_semantic_splits.py' in capsys.readouterr().out
    for options, message in (([], 'required: convert'),
                             (['new', '--img-dir', 'a', '--mask-dir', 'b',
                               '--out-dir', 'c'],
                              '--percent --count is required')):
        with pytest.raises(SystemExit) as stop:
            run(*options)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
