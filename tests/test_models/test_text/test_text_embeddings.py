# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""The file of text vectors, and vectors from spelling."""
import pytest
import torch

from mmsemi.models.text import (TextEmbeddings, char_ngram_vectors,
                                check_class_order, class_texts, encode_classes,
                                load_text_embeddings)
from mmsemi.models.text.char_ngrams import char_ngrams

CLASSES = ('crab', 'sea_eel', 'starfish')


def make_embeddings(**changes):
    fields = dict(
        classes=CLASSES,
        texts=('crab', 'sea eel', 'starfish'),
        vectors=torch.arange(12.).reshape(3, 4),
        model='a/model',
        pooling='mean')
    return TextEmbeddings(**{**fields, **changes})


def test_file_keeps_everything(tmp_path):
    path = tmp_path / 'new' / 'sea.pt'
    saved = make_embeddings()
    saved.save(path)
    loaded = TextEmbeddings.load(path)
    assert torch.equal(loaded.vectors, saved.vectors)
    assert loaded.vectors.dtype is torch.float32
    for field in ('classes', 'texts', 'model', 'pooling', 'checksum'):
        assert getattr(loaded, field) == getattr(saved, field)
    assert [p.name for p in path.parent.iterdir()] == ['sea.pt']


@pytest.mark.parametrize('changes', [
    dict(classes=('crab', 'eel', 'starfish')),
    dict(texts=('crab', 'eel', 'starfish')),
    dict(vectors=torch.arange(12.).reshape(3, 4).flip(0)),
    dict(model='another'),
    dict(pooling='cls'),
])
def test_checksum_is_over_all_of_it(changes):
    assert make_embeddings().checksum == make_embeddings().checksum
    assert make_embeddings().checksum != make_embeddings(**changes).checksum
    assert len(make_embeddings().checksum) == 64


@pytest.mark.parametrize('field, value', [
    ('classes', ['eel', 'crab', 'starfish']),
    ('vectors', torch.zeros(3, 4)),
    ('vectors', torch.zeros(2, 4)),
    ('checksum', '0' * 64),
    ('texts', None),
])
def test_changed_file_is_refused(tmp_path, field, value):
    path = tmp_path / 'sea.pt'
    make_embeddings().save(path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, field: value}, path)
    with pytest.raises(ValueError, match='sea.pt is damaged'):
        TextEmbeddings.load(path)


def test_cut_file_is_refused(tmp_path):
    path = tmp_path / 'sea.pt'
    make_embeddings().save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match='sea.pt is damaged'):
        TextEmbeddings.load(path)


@pytest.mark.parametrize('content', [{}, [1, 2], torch.zeros(2)])
def test_other_file_is_refused(tmp_path, content):
    path = tmp_path / 'other.pt'
    torch.save(content, path)
    with pytest.raises(ValueError, match='no file of text embeddings'):
        TextEmbeddings.load(path)


def test_file_of_a_pickled_object_is_refused(tmp_path):
    path = tmp_path / 'object.pt'
    torch.save(make_embeddings(), path)
    with pytest.raises(ValueError, match='damaged'):
        TextEmbeddings.load(path)


def test_missing_file_is_named_with_the_tool(tmp_path):
    with pytest.raises(FileNotFoundError, match='encode_class_names.py'):
        TextEmbeddings.load(tmp_path / 'none.pt')


@pytest.mark.parametrize('changes, error', [
    (dict(classes=('crab', 'eel')), ValueError),
    (dict(classes=('crab', 'crab', 'eel')), ValueError),
    (dict(texts=('crab', 'eel')), ValueError),
    (dict(vectors=torch.zeros(3)), ValueError),
    (dict(vectors=torch.full((3, 2), float('nan'))), ValueError),
    (dict(vectors=torch.zeros(3, 2).double()), TypeError),
    (dict(classes='abc'), TypeError),
    (dict(model=None), TypeError),
])
def test_wrong_fields_are_refused(changes, error):
    with pytest.raises(error, match='TextEmbeddings'):
        make_embeddings(**changes)


def test_vectors_are_a_copy():
    vectors = torch.ones(3, 2)
    embeddings = make_embeddings(vectors=vectors)
    vectors.zero_()
    assert (embeddings.vectors == 1).all()


@pytest.mark.parametrize('classes, words', [
    (('crab', 'starfish', 'sea_eel'), "another order: class 1 is 'starfish'"),
    (('crab', 'sea_eel'), "not in the data: 'starfish'"),
    (('crab', 'sea_eel', 'starfish', 'rov'), "without text: 'rov'"),
])
def test_other_class_list_is_refused(classes, words):
    with pytest.raises(ValueError, match=words):
        make_embeddings().for_classes(classes)
    with pytest.raises(ValueError, match=words):
        check_class_order(CLASSES, classes)


def test_same_class_list_is_taken():
    embeddings = make_embeddings()
    assert embeddings.for_classes(list(CLASSES)) is embeddings


# Texts ---------------------------------------------------------------------


def test_text_is_the_name_in_words():
    assert class_texts(['animal_etc', 'ROV', 'dining table']) == (
        'animal etc', 'rov', 'dining table')


def test_texts_override_by_name_or_place():
    classes = ['rov', 'animal_etc']
    assert class_texts(classes, {'rov': ' remotely  operated\nvehicle '}) == (
        'remotely operated vehicle', 'animal etc')
    assert class_texts(classes, ['A', 'b']) == ('A', 'b')


@pytest.mark.parametrize('classes, texts, error', [
    ([], None, ValueError),
    (['a', 'a'], None, ValueError),
    ('ab', None, TypeError),
    (['a', 1], None, TypeError),
    (['a', 'b'], ['x'], ValueError),
    (['a', 'b'], 'xy', ValueError),
    (['a', 'b'], {'c': 'x'}, ValueError),
    (['a', 'b'], {'a': ' '}, ValueError),
    (['a', 'b'], {'a': 1}, TypeError),
    (['a', 'b'], {'a': 'b'}, ValueError),
    (['Crab', 'crab'], None, ValueError),
])
def test_wrong_texts_are_refused(classes, texts, error):
    with pytest.raises(error):
        class_texts(classes, texts)


# Spelling ------------------------------------------------------------------


def test_pieces_of_a_word():
    assert char_ngrams('one', (2, )) == ['<one>', '<o', 'on', 'ne', 'e>']
    assert char_ngrams('a b', (1, 3)) == ['<a>', 'a', '<a>', '<b>', 'b', '<b>']


def test_spelling_alone_decides():
    vectors = char_ngram_vectors(['starfish', 'starfishes', 'eel'], 256)
    assert vectors.shape == (3, 256)
    assert vectors.dtype is torch.float32
    near, far = torch.cosine_similarity(vectors[:1], vectors[1:])
    assert near > 0.6 > 0.3 > far
    assert torch.equal(vectors[2:], char_ngram_vectors(['eel'], 256))
    # Files stay as they are only if these never change.
    first = torch.tensor([[0., 0., 0., 0., 0., 0., 0.6, 0.]])
    torch.testing.assert_close(char_ngram_vectors(['a'], 8), first)


def test_spelling_needs_no_weights():
    embeddings = encode_classes(CLASSES, 'char-ngrams', {'crab': 'a crab'})
    assert embeddings.classes == CLASSES
    assert embeddings.texts == ('a crab', 'sea eel', 'starfish')
    assert (embeddings.model, embeddings.pooling) == ('char-ngrams', 'mean')
    expected = char_ngram_vectors(embeddings.texts)
    assert torch.equal(embeddings.vectors, expected)
    with pytest.raises(ValueError, match="only 'mean'"):
        encode_classes(CLASSES, 'char-ngrams', pooling='cls')


# Sources -------------------------------------------------------------------


def test_sources_of_a_model(tmp_path):
    saved = make_embeddings()
    saved.save(tmp_path / 'sea.pt')
    assert load_text_embeddings(saved) is saved
    for path in (tmp_path / 'sea.pt', str(tmp_path / 'sea.pt')):
        assert load_text_embeddings(path).checksum == saved.checksum
    encoded = load_text_embeddings(
        dict(model='char-ngrams', classes=CLASSES, texts={'crab': 'a crab'}))
    assert encoded.texts[0] == 'a crab'


@pytest.mark.parametrize('source, error, words', [
    (3, TypeError, 'allowed are a file'),
    (dict(model='char-ngrams'), ValueError, 'classes and model'),
    (dict(classes=CLASSES, pool='mean'), ValueError, 'pool'),
    (dict(classes=CLASSES), ValueError, 'encode_class_names.py'),
    (dict(classes=CLASSES, model='bert'), ValueError, 'Encode the names once'),
])
def test_wrong_sources_are_refused(source, error, words):
    with pytest.raises(error, match=words):
        load_text_embeddings(source)
