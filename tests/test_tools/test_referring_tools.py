# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import hashlib
import json
import pickle
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmsemi.datasets.refer_files import read_annotations

TOOLS = Path(__file__).resolve().parents[2] / 'tools/dataset_converters'


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):

    def run_tool(name, *options):
        tool = str(TOOLS / f'{name}.py')
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, options)])
        runpy.run_path(tool, run_name='__main__')
        return capsys.readouterr().out

    return run_tool


@pytest.fixture
def refer(tmp_path):
    """RefCOCO's two files, of twenty images with a ref each."""
    folder = tmp_path / 'refer/tiny'
    folder.mkdir(parents=True)
    (tmp_path / 'images').mkdir()
    for i in range(20):
        cv2.imwrite(
            str(tmp_path / f'images/{i}.png'), np.zeros((8, 9, 3), np.uint8))
    instances = dict(
        images=[
            dict(id=i, file_name=f'{i}.png', height=8, width=9)
            for i in range(20)
        ],
        annotations=[
            dict(
                id=i,
                image_id=i,
                category_id=1,
                bbox=[1, 1, 4, 4],
                segmentation=[[1, 1, 5, 1, 5, 5, 1, 5]],
                area=16,
                iscrowd=0) for i in range(20)
        ],
        categories=[dict(id=1, name='person')])
    (folder / 'instances.json').write_text(json.dumps(instances))
    refs = [
        dict(
            ref_id=i,
            ann_id=i,
            image_id=i,
            category_id=1,
            file_name=f'x_{i}_1.jpg',
            split='train' if i < 18 else 'val',
            sent_ids=[i],
            sentences=[dict(tokens=['a'], raw='A', sent='a', sent_id=i)])
        for i in range(20)
    ]
    (folder / 'refs(unc).p').write_bytes(pickle.dumps(refs, 2))
    return tmp_path


CONVERT = ('refer', '--dataset', 'tiny', '--partition', 'unc')


def test_convert_split_and_check(run, refer):
    out = run('refer2json', *CONVERT, '--other-data')
    path = refer / 'refer/tiny-unc.json'
    assert f'sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}' in out
    assert 'train: 18 refs of 18 images, 18 sentences' in out
    assert len(read_annotations(path)['refs']) == 20

    out = run('split_refer', path, '--percent', 10, 50)
    stem = str(refer / 'refer/splits/tiny-unc.semires')
    assert f'{stem}@10.txt: 1 images, 1 refs' in out
    assert f'{stem}@50-unlabeled.txt: 9 images, 9 refs' in out
    lists = [Path(f'{stem}@50{part}.txt') for part in ('', '-unlabeled')]
    names = [file.read_text().split() for file in lists]
    assert sorted(sum(names, [])) == sorted(f'{i}.png' for i in range(18))

    run('split_refer', path, '--percent', 50, '--scheme', 'seeded', '--seed',
        0, 1, '--fold', 2, '--out-dir', 'own', '--quiet')
    assert sorted(file.name for file in (refer / 'own').iterdir()) == [
        'tiny-unc.seed0-fold2@50-unlabeled.txt',
        'tiny-unc.seed0-fold2@50.txt',
        'tiny-unc.seed1-fold2@50-unlabeled.txt',
        'tiny-unc.seed1-fold2@50.txt'
    ]

    out = run('check_referring', path, '--img-dir', 'images', '--lists',
              *lists)
    assert 'val: 2 refs, 2 images, 2 sentences' in out
    assert 'no error' in out
    (refer / 'images/3.png').unlink()
    with pytest.raises(SystemExit, match='has 2 errors'):
        run('check_referring', path, '--img-dir', 'images', '--lists',
            lists[0], lists[0], '--quiet')


@pytest.mark.parametrize('tool, options, message', [
    ('refer2json', CONVERT, 'numbers of tiny .unc. are not known'),
    ('refer2json', ('refer', '--dataset', 'tiny', '--partition', 'umd'),
     r'no file of refs refer/tiny/refs\(umd\).p'),
    ('refer2json', (*CONVERT, '--instances', 'no.json'), 'no.json'),
    ('split_refer', ('no.json', ), 'no annotation file no.json'),
    ('check_referring', ('no.json', ), 'no annotation file no.json'),
])
def test_refused(run, refer, tool, options, message):
    with pytest.raises(SystemExit, match=f'{tool}: .*{message}'):
        run(tool, *options)
    assert not (refer / 'refer/tiny-unc.json').exists()


def test_parts_that_round_to_nothing_write_no_list(run, refer):
    run('refer2json', *CONVERT, '--other-data', '--quiet')
    with pytest.raises(SystemExit, match='percent=1.0 of 18 images is less'):
        run('split_refer', 'refer/tiny-unc.json', '--percent', 1)
    assert not (refer / 'refer/splits').exists()


@pytest.mark.parametrize('tool',
                         ['refer2json', 'split_refer', 'check_referring'])
def test_help(run, tool, capsys):
    with pytest.raises(SystemExit) as end:
        run(tool, '--help')
    assert end.value.code == 0
    assert 'usage' in capsys.readouterr().out
