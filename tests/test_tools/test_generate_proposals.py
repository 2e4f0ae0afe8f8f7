# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
import os

import cv2
import numpy as np
import pytest

from mmsemi.datasets.proposal_store import ProposalStore

REGIONS = ('--backend', 'felzenszwalb', '--min-size', 5, '--scales', 50,
           '--sigma', 0)


@pytest.fixture
def images(tmp_path):
    """Path: A folder with four images, one of a single colour."""
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    for number, name in enumerate(('a.png', 'b.png', 'sub/c.png', 'd.png')):
        image = np.zeros((16, 20, 3), np.uint8)
        if number < 3:
            image[2:9, 3 + number:12] = 255, 30 * number, 90
        cv2.imwrite(str(folder / name), image)
    return folder


def read(path):
    store = ProposalStore(path)
    store.verify()
    return {key: store.read(key).masks() for key in store}


def test_a_folder_of_images(run_tool, images, tmp_path):
    out = tmp_path / 'store'
    done = run_tool('generate_proposals', images, '--out', out, *REGIONS,
                    '--quiet')
    assert (done.code, done.err) == (0, '')
    assert '4 of 4 images' in done.out and '(1 images without' in done.out
    assert 'Process 1 of 1: 4 images' in done.out
    masks = read(out)
    assert set(masks) == {'a.png', 'b.png', 'sub/c.png', 'd.png'}
    # The image of one colour is one region, which is not a proposal.
    assert masks['d.png'].shape == (0, 16, 20)
    assert any(mask.sum() == 63 and mask[2:9, 3:12].all()
               for mask in masks['a.png'])
    assert ProposalStore(out).settings['scales'] == [50.]
    again = run_tool('generate_proposals', images, '--out', out, *REGIONS)
    assert again.code == 0 and '4 done before' in again.out
    assert len(list(out.glob('*.bin'))) == 1


def test_a_killed_run_goes_on(run_tool, images, tmp_path):
    out = tmp_path / 'store'
    arguments = ('generate_proposals', images, '--out', out, *REGIONS)
    run_tool(*arguments, '--quiet')
    before = read(out)
    lines, = out.glob('*.jsonl')
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    # Killed in the third image's line, after its record.
    text = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(text[0] + text[1] + text[2][:9])
    records = lines.with_suffix('.bin')
    os.truncate(records, entries[3][1] + 3)
    done = run_tool(*arguments)
    assert done.code == 0 and '2 done before' in done.out
    assert 'Process 1 of 1: 2 images' in done.out
    assert 'task/s' in done.out and 'ETA' in done.out
    after = read(out)
    assert set(after) == set(before)
    for key, masks in after.items():
        np.testing.assert_array_equal(masks, before[key])
    assert records.stat().st_size == entries[2][1]
    assert len(list(out.glob('*.bin'))) == 2


def test_other_settings_are_refused(run_tool, images, tmp_path):
    out = tmp_path / 'store'
    run_tool('generate_proposals', images, '--out', out, *REGIONS)
    done = run_tool('generate_proposals', images, '--out', out, *REGIONS,
                    '--sigma', 1)
    assert done.code == 2 and 'Traceback' not in done.err
    assert 'other settings (sigma: 0.0 there, 1.0 here)' in done.err


def test_processes_share_the_images(run_tool, images, tmp_path, monkeypatch):
    out = tmp_path / 'store'
    monkeypatch.setenv('WORLD_SIZE', '2')
    for rank in ('1', '0'):
        monkeypatch.setenv('RANK', rank)
        done = run_tool('generate_proposals', images, '--out', out, *REGIONS)
        assert done.code == 0
        assert f'Process {int(rank) + 1} of 2: 2 images' in done.out
    assert '4 of 4 images' in done.out
    assert sorted(file.stem for file in out.glob('*.bin')) == [
        '0000-0000', '0001-0000'
    ]


def test_a_broken_image(run_tool, images, tmp_path):
    out = tmp_path / 'store'
    (images / 'b.png').write_bytes(b'no image')
    arguments = ('generate_proposals', images, '--out', out, *REGIONS,
                 '--quiet')
    done = run_tool(*arguments)
    assert done.code == 2 and 'Traceback' not in done.err
    assert f'{images}/b.png cannot be read' in done.err
    assert '--skip-broken' in done.err
    assert set(read(out)) == {'a.png'}
    done = run_tool(*arguments, '--skip-broken')
    assert done.code == 0 and '3 of 4 images' in done.out
    assert '1 images that cannot be read, 1 done before' in done.out
    assert list(ProposalStore(out).index.broken) == ['b.png']
    done = run_tool(*arguments, '--skip-broken')
    assert '4 done before' in done.out
    cv2.imwrite(str(images / 'b.png'), np.zeros((4, 4, 3), np.uint8))
    done = run_tool(*arguments)
    assert '4 of 4 images' in done.out and not ProposalStore(out).index.broken


def test_a_list_of_images(run_tool, images, tmp_path):
    (images / 'list.txt').write_text('sub/c.png\n# nothing\na.png\n')
    done = run_tool('generate_proposals', images / 'list.txt', '--out',
                    tmp_path / 'one', *REGIONS)
    assert done.code == 0
    assert set(read(tmp_path / 'one')) == {'a.png', 'sub/c.png'}
    done = run_tool('generate_proposals', images / 'sub', '--img-root', images,
                    '--out', tmp_path / 'two', *REGIONS)
    assert set(read(tmp_path / 'two')) == {'sub/c.png'}


@pytest.mark.parametrize('backend', ['sam', 'sam2', 'sam_hq'])
def test_a_tiny_random_sam(run_tool, images, tmp_path, backend):
    done = run_tool('generate_proposals', images, '--backend', backend,
                    '--out', tmp_path / 's', '--model', 'tiny-random',
                    '--points-per-side', 2, '--pred-iou-thr', -9,
                    '--stability-thr', 0, '--device', 'cpu', '--quiet')
    assert (done.code, done.err) == (0, '')
    store = ProposalStore(tmp_path / 's')
    assert store.settings['backend'] == backend
    assert store.settings['pred_iou_thr'] == -9
    assert len(store) == 4
    store.verify()


@pytest.mark.parametrize('arguments, words', [
    (('none', *REGIONS), 'no folder or list none'),
    (('images', *REGIONS, '--model', 'x'), 'felzenszwalb does not have '
     '--model'),
    (('images', '--backend', 'sam', '--sigma', 1), 'does not have --sigma'),
    (('images', '--backend', 'sam', '--model', './nothing'), 'neither a'),
    (('images', *REGIONS, '--merge-iou', 7), 'merge_iou=7'),
    (('images', *REGIONS, '--img-root', 'x'), 'is not below x'),
])
def test_wrong_input_is_one_line(run_tool, images, tmp_path, monkeypatch,
                                 arguments, words):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    done = run_tool('generate_proposals', *arguments, '--out', 'out')
    assert done.code == 2 and words in done.err
    assert 'Traceback' not in done.err
    assert not (tmp_path / 'out').exists()
