# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope

from mmsemi.apis.checkpoints import load_checkpoint_file
from mmsemi.apis.inference import dataset_meta, plain


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path), )


def test_checkpoint_of_a_training(tmp_path):
    path = tmp_path / 'a.pth'
    history = HistoryBuffer([1., 2.], [1, 1])
    torch.save(
        dict(
            state_dict=dict(w=torch.ones(2)),
            meta=dict(iter=3, epoch=np.int64(1)),
            message_hub=dict(log_scalars=dict(loss=history))), path)
    loaded = load_checkpoint_file(path)
    assert loaded['state_dict']['w'].tolist() == [1, 1]
    assert loaded['meta']['iter'] == 3


def test_bare_weights(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(w=torch.ones(1)), path)
    assert load_checkpoint_file(path) == dict(
        state_dict=dict(w=torch.ones(1)))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=Attack(tmp_path / 'attacked')), path)
    with pytest.raises(ValueError, match='holds more than data'):
        load_checkpoint_file(path)
    assert not (tmp_path / 'attacked').exists()


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        load_checkpoint_file(tmp_path / 'none.pth')
    for name, content in (('text', b'hello'), ('empty', b''),
                          ('pickle', pickle.dumps([1]))):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match='checkpoint'):
            load_checkpoint_file(path)
    torch.save(dict(state_dict={}), tmp_path / 'hollow')
    with pytest.raises(ValueError, match='holds no weights'):
        load_checkpoint_file(tmp_path / 'hollow')


def test_dataset_meta():
    meta = dict(CLASSES=('a', 'b'), palette=np.array([[1, 2, 3]]))
    assert dataset_meta(Config({}), dict(meta=dict(dataset_meta=meta))) == {
        'classes': ('a', 'b'),
        'palette': [[1, 2, 3]]
    }


def test_dataset_meta_without_the_data():
    init_default_scope('mmseg')
    source = dict(type='PascalVOCDataset', ann_file='no/list.txt')
    for more, first in ((dict(), 'background'),
                        (dict(metainfo=dict(classes=('cat', ))), 'cat')):
        cfg = Config(dict(test_dataloader=dict(dataset={**source, **more})))
        assert dataset_meta(cfg, {})['classes'][0] == first


def test_plain():
    found = plain(dict(a=[torch.ones(2), (np.float32(0.5), )], b='x'))
    assert found == dict(a=[[1., 1.], (0.5, )], b='x')
    assert type(found['a'][1][0]) is float
