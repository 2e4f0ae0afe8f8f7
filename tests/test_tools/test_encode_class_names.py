# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
import json

import pytest
from mmengine.registry import DefaultScope

from mmsemi.models.text import TextEmbeddings, encode_classes

SPELLING = ('--model', 'char-ngrams', '--quiet')


def test_from_a_list(run_tool, tmp_path):
    out, texts = tmp_path / 'new' / 'sea.pt', tmp_path / 'texts.json'
    texts.write_text(json.dumps({'animal_etc': 'other animal'}))
    done = run_tool('encode_class_names', '--classes', 'crab', 'animal_etc',
                    '--texts', texts, '--out', out, *SPELLING)
    assert (done.code, done.err) == (0, '')
    found = TextEmbeddings.load(out)
    assert found.classes == ('crab', 'animal_etc')
    expected = encode_classes(found.classes, 'char-ngrams',
                              {'animal_etc': 'other animal'})
    assert found.checksum == expected.checksum
    assert 'animal_etc: other animal' in done.out
    assert f'checksum {found.checksum[:12]}' in done.out
    again = run_tool('encode_class_names', '--classes', 'crab', '--out', out,
                     *SPELLING)
    assert again.code == 2 and '--overwrite' in again.err
    assert TextEmbeddings.load(out).checksum == found.checksum
    again = run_tool('encode_class_names', '--classes', 'crab', '--out', out,
                     '--overwrite', *SPELLING)
    assert again.code == 0
    assert TextEmbeddings.load(out).classes == ('crab', )


def test_from_annotations_and_a_config(run_tool, tmp_path):
    categories = [dict(id=7, name='eel'), dict(id=3, name='crab')]
    ann_file = tmp_path / 'train.json'
    ann_file.write_text(
        json.dumps(dict(images=[], annotations=[], categories=categories)))
    out = tmp_path / 'sea.pt'
    done = run_tool('encode_class_names', '--ann-file', ann_file, '--out', out,
                    *SPELLING)
    assert done.code == 0, done.err
    # The order in the file is that of mmdet's labels.
    assert TextEmbeddings.load(out).classes == ('eel', 'crab')
    config = tmp_path / 'sea.py'
    for classes, code in ((('eel', 'crab'), 0), (('crab', 'eel'), 2)):
        config.write_text(f'''
default_scope = 'mmdet'
val_dataloader = dict(
    dataset=dict(
        type='CocoDataset',
        ann_file={str(ann_file)!r},
        metainfo=dict(classes={classes})))
''')
        done = run_tool('encode_class_names', '--config', config, '--out', out,
                        '--overwrite', *SPELLING)
        assert done.code == code, done.err
    assert 'in another order' in done.err
    assert TextEmbeddings.load(out).classes == ('eel', 'crab')


@pytest.mark.parametrize('config, first', [
    ('mean-teacher_solov2_r18-fpn_1xb24-2k_digits-2p', 'zero'),
    ('fixmatch_fcn-r18_1xb16-3k_digits-2p', 'background'),
])
def test_from_a_config_by_name(run_tool, tmp_path, config, first):
    # No scope is left over from other tests.
    DefaultScope._instance_dict.clear()
    done = run_tool('encode_class_names', '--config', config, '--out',
                    tmp_path / 'digits.pt', *SPELLING)
    assert done.code == 0, done.err
    assert TextEmbeddings.load(tmp_path / 'digits.pt').classes[0] == first


def test_texts_of_the_data_set(run_tool, tmp_path):
    out, texts = tmp_path / 'trashcan.pt', tmp_path / 'texts.json'
    config = 'seminst_mask-rcnn_r50-fpn_text_1xb4-30k_trashcan-10p'
    done = run_tool('encode_class_names', '--config', config, '--out', out,
                    *SPELLING)
    assert done.code == 0, done.err
    found = TextEmbeddings.load(out)
    assert found.classes[0] == 'rov'
    assert found.texts[0] == 'remotely operated vehicle'
    assert 'animal_etc: other animal' in done.out
    # A file goes before them, where it says something.
    texts.write_text(json.dumps({'animal_etc': 'sea cucumber'}))
    done = run_tool('encode_class_names', '--config', config, '--texts', texts,
                    '--out', out, '--overwrite', *SPELLING)
    assert 'animal_etc: sea cucumber' in done.out
    assert 'rov: remotely operated vehicle' in done.out


def test_texts_of_some_classes_and_texts_that_are_none(run_tool, tmp_path):
    config = tmp_path / 'sea.py'
    source = """
default_scope = 'mmdet'
val_dataloader = dict(
    dataset=dict(
        type='CocoDataset',
        ann_file='none.json',
        metainfo=dict(classes=('eel', 'crab'), class_texts={texts})))
"""
    config.write_text(
        source.format(texts=dict(crab='a crab', dog='a wolf')))
    out = tmp_path / 'sea.pt'
    done = run_tool('encode_class_names', '--config', config, '--out', out,
                    *SPELLING)
    assert done.code == 0, done.err
    assert TextEmbeddings.load(out).texts == ('eel', 'a crab')
    config.write_text(source.format(texts=['eel', 'crab']))
    done = run_tool('encode_class_names', '--config', config, '--out', out,
                    '--overwrite', *SPELLING)
    assert done.code == 2 and 'texts by class name, not a list' in done.err


@pytest.mark.parametrize('args, words', [
    (('--classes', 'a', '--model', 'nobody/nothing'), 'neither a folder'),
    (('--classes', 'a', 'a', *SPELLING), 'names that differ'),
    (('--classes', 'a', '--pooling', 'cls', *SPELLING), "only 'mean'"),
    (('--classes', 'a', '--texts', 'none.json'), 'no file none.json'),
    (('--ann-file', 'none.json'), 'no annotation file none.json'),
    (('--config', 'no_such_config'), 'no config no_such_config'),
])
def test_wrong_input_is_one_line(run_tool, monkeypatch, tmp_path, args,
                                 words):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    done = run_tool('encode_class_names', *args, '--out', tmp_path / 'x.pt')
    assert done.code == 2
    assert words in done.err
    assert 'Traceback' not in done.err
    assert not (tmp_path / 'x.pt').exists()
