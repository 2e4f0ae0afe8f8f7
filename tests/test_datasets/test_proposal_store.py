# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json
import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mmsemi.datasets.proposal_store import ProposalStore, image_key
from mmsemi.datasets.proposal_writer import ProposalWriter

SETTINGS = dict(backend='none', scales=(1, 2))


def random_masks(num, shape=(9, 14), seed=0):
    return np.random.default_rng(seed).random((num, *shape)) < 0.4


@pytest.fixture
def store(tmp_path):
    """Path: A store of three images: 9 masks, none, 1."""
    path = tmp_path / 'store'
    with ProposalWriter(path, SETTINGS) as writer:
        writer.add('a.png', random_masks(9), np.linspace(1, 0.2, 9))
        writer.add('b/empty.png', random_masks(0, (5, 6)))
        writer.add('b/c.png', random_masks(1, (7, 3), 1), None, [0.5])
    return path


def shard(path, suffix='.bin'):
    file, = path.glob(f'*{suffix}')
    return file


def test_masks_and_what_is_known_of_them_come_back(store):
    found = ProposalStore(store, SETTINGS)
    assert list(found) == ['a.png', 'b/empty.png', 'b/c.png']
    assert len(found) == 3 and 'b/c.png' in found and 'c.png' not in found
    masks, read = random_masks(9), found.read('a.png')
    assert read.shape == (9, 14) and len(read) == 9
    np.testing.assert_array_equal(read.masks(), masks)
    np.testing.assert_array_equal(read.area, masks.sum((1, 2)))
    for mask, (x1, y1, x2, y2) in zip(masks, read.bbox):
        assert mask[y1:y2, x1:x2].sum() == mask.sum()
        assert mask[y1].any() and mask[y2 - 1].any()
        assert mask[:, x1].any() and mask[:, x2 - 1].any()
    np.testing.assert_allclose(read.predicted_iou, np.linspace(1, .2, 9))
    assert np.isnan(read.stability).all()
    packed = read.packed()
    assert packed.shape == (9, 9, 14)
    np.testing.assert_array_equal(packed.to_bool().numpy(), masks)
    some = read[np.array([8, 0])]
    np.testing.assert_array_equal(some.masks(), masks[[8, 0]])
    np.testing.assert_array_equal(read[:2].area, read.area[:2])
    assert found.read('b/c.png').stability.tolist() == [0.5]
    found.verify()
    assert found.num_bytes() == sum(
        os.path.getsize(file) for file in store.iterdir())


def test_many_masks_of_all_kinds(tmp_path):
    masks = random_masks(131)
    masks[1], masks[2] = False, True
    masks[3:20] = False
    # Long runs, first and last pixels.
    masks[4, 0, 0] = masks[5, -1, -1] = masks[6, :, 2:9] = True
    masks[7] = ~masks[6]
    with ProposalWriter(tmp_path / 's', {}) as writer:
        writer.add('x', masks)
    packed = ProposalStore(tmp_path / 's').read('x').packed()
    assert packed.data.shape == (17, 9, 14)
    np.testing.assert_array_equal(packed.to_bool().numpy(), masks)


def test_no_proposal_is_an_empty_set(store):
    read = ProposalStore(store).read('b/empty.png')
    assert len(read) == 0 and read.masks().shape == (0, 5, 6)
    assert read.packed().shape == (0, 5, 6)
    assert read.bbox.shape == (0, 4)


def test_reading_is_a_seek(store, monkeypatch):
    found = ProposalStore(store)
    entry = found.index.entries['b/c.png']
    read = []
    monkeypatch.setattr(
        'mmsemi.datasets.proposal_store.decode_record',
        lambda record, entry: read.append(len(record)))
    found.read('b/c.png')
    assert read == [entry.size] and entry.offset > entry.size


def test_keys_of_image_files(store):
    found = ProposalStore(store)
    assert found.find_key('/data/a.png') == 'a.png'
    assert found.find_key('train/b/c.png') == 'b/c.png'
    assert found.find_key('root/b/c.png', 'root') == 'b/c.png'
    assert image_key('x/../x/a.png', 'x/../x') == 'a.png'
    with pytest.raises(ValueError, match='is not below root'):
        found.find_key('other/a.png', 'root')
    with pytest.raises(KeyError, match='not among the 3 images .*a.png'):
        found.find_key('x/c.png')
    with pytest.raises(KeyError, match='not among the 3 images'):
        found.find_key('root/x/a.png', 'root')
    with pytest.raises(KeyError, match='not among'):
        found.read('d.png')


def test_an_end_of_two_keys_is_no_guess(tmp_path):
    with ProposalWriter(tmp_path / 's', {}) as writer:
        writer.add('c.png', random_masks(1))
        writer.add('b/c.png', random_masks(2))
    found = ProposalStore(tmp_path / 's')
    with pytest.raises(ValueError, match=r'img_root'):
        found.find_key('x/b/c.png')
    assert found.find_key('x/b/c.png', 'x/b') == 'c.png'
    assert found.find_key('x/c.png') == 'c.png'


def test_other_settings_are_refused(store):
    text = r'scales: \[1, 2\] there, \[1, 3\] here'
    with pytest.raises(ValueError, match=text):
        ProposalStore(store, dict(backend='none', scales=[1, 3]))
    with pytest.raises(ValueError, match='other settings .*sigma: None'):
        ProposalWriter(store, dict(SETTINGS, sigma=1))
    assert len(list(store.glob('*.bin'))) == 1


def test_damaged_manifests_are_refused(store):
    manifest = store / 'manifest.json'
    content = json.loads(manifest.read_text())
    for change, words in ((dict(version=2), 'version 2'),
                          (dict(settings={}), 'their checksum')):
        manifest.write_text(json.dumps(dict(content, **change)))
        with pytest.raises(ValueError, match=words):
            ProposalStore(store)
    manifest.write_text('{')
    with pytest.raises(ValueError, match='is damaged'):
        ProposalStore(store)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match='no store .*generate'):
        ProposalStore(store)


def test_damage_is_told_when_it_is_read(store):
    records = shard(store)
    content = bytearray(records.read_bytes())
    content[-1] ^= 1
    records.write_bytes(content)
    found = ProposalStore(store)
    assert len(found.read('a.png')) == 9
    with pytest.raises(ValueError, match="damaged: .*'b/c.png'.*checksum"):
        found.read('b/c.png')
    with pytest.raises(ValueError, match='checksum'):
        found.verify()
    records.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="cut off: .*'b/c.png'"):
        found.read('b/c.png')
    with pytest.raises(ValueError, match="cut off: .*'b/c.png'"):
        len(ProposalStore(store))
    records.unlink()
    with pytest.raises(FileNotFoundError, match='is missing'):
        found.read('a.png')
    lines = shard(store, '.jsonl')
    lines.write_bytes(b'{}\n' + lines.read_bytes())
    with pytest.raises(ValueError, match='jsonl is damaged'):
        len(ProposalStore(store))


@pytest.mark.parametrize('cut', ['record', 'line', 'loose record'])
def test_what_a_killed_writer_leaves_is_repaired(store, cut):
    records, lines = shard(store), shard(store, '.jsonl')
    whole = records.read_bytes()
    entry = ProposalStore(store).index.entries['b/c.png']
    if cut == 'record':
        # The machine went down: the line is there, its record is not.
        os.truncate(records, entry.offset + 1)
    elif cut == 'line':
        os.truncate(lines, lines.stat().st_size - 1)
        assert list(ProposalStore(store)) == ['a.png', 'b/empty.png']
    else:
        records.write_bytes(whole + b'half a record')
    with ProposalWriter(store, SETTINGS, rank=3) as writer:
        done = list(writer.found.entries)
        if cut == 'loose record':
            assert done == ['a.png', 'b/empty.png', 'b/c.png']
            assert records.read_bytes() == whole
        else:
            assert done == ['a.png', 'b/empty.png']
            assert records.read_bytes() == whole[:entry.offset]
            writer.add('b/c.png', random_masks(1, (7, 3), 1))
    found = ProposalStore(store)
    found.verify()
    assert set(found) == {'a.png', 'b/empty.png', 'b/c.png'}
    np.testing.assert_array_equal(
        found.read('b/c.png').masks(), random_masks(1, (7, 3), 1))
    assert len(list(store.glob('*.bin'))) == 1 + (cut != 'loose record')
    assert not list(store.glob('.*.tmp'))


def test_files_of_a_running_writer_are_left_alone(store):
    with ProposalWriter(store, SETTINGS) as running:
        running.add('d.png', random_masks(2))
        records, lines = (file.name for file in running._files)
        with open(lines, 'ab') as file:
            file.write(b'["e.p')
        size = os.path.getsize(lines)
        second = ProposalWriter(store, SETTINGS, rank=1)
        assert 'd.png' in second.found.entries
        assert os.path.getsize(lines) == size
    ProposalWriter(store, SETTINGS)
    assert os.path.getsize(lines) == size - 5


def test_every_run_and_process_has_its_own_files(tmp_path):
    path = tmp_path / 's'
    first, second = (ProposalWriter(path, {}, rank) for rank in (0, 1))
    # Nothing is made before there is something to write.
    assert [file.name for file in path.iterdir()] == ['manifest.json']
    first.add('a', random_masks(1))
    second.add('b', random_masks(1))
    third = ProposalWriter(path, {}, 0, shard_bytes=1)
    third.add('c', random_masks(1))
    third.add('d', random_masks(1))
    assert sorted(file.stem for file in path.glob('*.bin')) == [
        '0000-0000', '0000-0001', '0000-0002', '0001-0000'
    ]
    assert set(ProposalStore(path)) == {'a', 'b', 'c', 'd'}


def test_broken_images_are_recorded(store):
    with ProposalWriter(store, SETTINGS) as writer:
        writer.add_broken('d.png', 'no image')
    found = ProposalStore(store)
    assert found.index.broken == {'d.png': 'no image'}
    assert 'd.png' not in found
    with pytest.raises(KeyError, match='could not be read: no image'):
        found.find_key('x/d.png')
    with ProposalWriter(store, SETTINGS) as writer:
        writer.add('d.png', random_masks(1))
    assert ProposalStore(store).index.broken == {}


@pytest.mark.parametrize('masks, scores, words', [
    (np.zeros((2, 3), bool), None, r'bool, \(N, H, W\)'),
    (np.zeros((1, 2, 3), np.uint8), None, 'uint8'),
    (np.zeros((2, 2, 3), bool), [1.], 'scores of shape'),
])
def test_wrong_masks_are_named(tmp_path, masks, scores, words):
    writer = ProposalWriter(tmp_path / 's', {})
    with pytest.raises(ValueError, match=words):
        writer.add('a.png', masks, scores)
    assert not list((tmp_path / 's').glob('*.jsonl'))


class Reads(Dataset):

    def __init__(self, store):
        self.store = store
        self.keys = ['a.png', 'b/empty.png', 'b/c.png'] * 2

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        masks = self.store.read(self.keys[index]).masks()
        return torch.tensor([len(masks), masks.sum()])


@pytest.mark.parametrize('opened', [False, True])
def test_forked_workers_read(store, opened):
    found = ProposalStore(store)
    if opened:
        found.read('a.png')
    loader = DataLoader(
        Reads(found), batch_size=None, num_workers=2,
        multiprocessing_context='fork')
    expected = [[9, int(random_masks(9).sum())], [0, 0],
                [1, int(random_masks(1, (7, 3), 1).sum())]]
    assert [row.tolist() for row in loader] == expected * 2
    assert (found._index is not None) == opened


def test_pickling_leaves_the_index_out(store):
    found = ProposalStore(store)
    found.read('a.png')
    copied = pickle.loads(pickle.dumps(found))
    assert copied._index is None and found._index is not None
    assert len(copied.read('a.png')) == 9
