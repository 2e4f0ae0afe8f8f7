# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Names of classes through tiny language models, by local folder."""
import json

import pytest
import torch
import transformers
from torch import nn

from mmsemi.models.text import class_encoder, encode_classes

SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
WORDS = ['crab', 'sea', 'star', '##fish', 'other', 'animal']
CLASSES = ('starfish', 'crab', 'sea_crab')
# Word pieces of the classes, and their ids with the marks at both ends.
IDS = ([2, 7, 8, 3], [2, 5, 3], [2, 6, 5, 3])


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')


def draw(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    """tuple: Folder and model of a BERT of eleven words."""
    folder = tmp_path_factory.mktemp('bert')
    vocab = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    transformers.BertTokenizer(
        vocab=vocab, model_max_length=8).save_pretrained(folder)
    model = draw(
        transformers.BertModel(
            transformers.BertConfig(
                vocab_size=len(vocab),
                hidden_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=16)))
    model.save_pretrained(folder)
    return folder, model


def clip_parts():
    letters = 'abcdefghijklmnopqrstuvwxyz'
    vocab = {'<|startoftext|>': 0, '<|endoftext|>': 1}
    for end in ('', '</w>'):
        vocab.update({c + end: len(vocab) + i for i, c in enumerate(letters)})
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[])
    text = dict(
        vocab_size=len(vocab),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        projection_dim=6,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1)
    return tokenizer, text


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    """tuple: Folder, model and tokenizer of a whole CLIP."""
    folder = tmp_path_factory.mktemp('clip')
    tokenizer, text = clip_parts()
    tokenizer.save_pretrained(folder)
    vision = dict(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        projection_dim=6)
    model = draw(
        transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=text, vision_config=vision, projection_dim=6)))
    model.save_pretrained(folder)
    return folder, model, tokenizer


@torch.no_grad()
def bert_rows(model, layer, rows):
    states = []
    for ids in IDS:
        output = model(torch.tensor([ids]), output_hidden_states=True)
        states.append(output.hidden_states[layer][0, rows].mean(0))
    return torch.stack(states)


@pytest.mark.parametrize('pooling, layer, rows', [
    ('mean', -1, slice(1, -1)),
    ('cls', -1, slice(0, 1)),
    ('first_layer', 1, slice(1, -1)),
])
def test_pooling(bert, pooling, layer, rows):
    folder, model = bert
    found = encode_classes(CLASSES, str(folder), pooling=pooling)
    torch.testing.assert_close(found.vectors, bert_rows(model, layer, rows))
    assert found.classes == CLASSES
    assert found.texts == ('starfish', 'crab', 'sea crab')
    assert (found.model, found.pooling) == (str(folder), pooling)


def test_a_vector_depends_on_no_other_class(bert):
    folder = str(bert[0])
    together = encode_classes(CLASSES, folder).vectors
    turned = encode_classes(CLASSES[::-1], folder).vectors
    assert torch.equal(turned, together.flip(0))
    assert torch.equal(encode_classes(CLASSES[:1], folder).vectors,
                       together[:1])


def test_texts_replace_names(bert):
    folder = str(bert[0])
    found = encode_classes(['animal_etc', 'crab'], folder,
                           {'animal_etc': 'other animal'})
    named = encode_classes(['other_animal', 'crab'], folder)
    assert torch.equal(found.vectors, named.vectors)
    assert found.texts == ('other animal', 'crab')


def test_progress_bar(bert, capsys):
    encode_classes(CLASSES, str(bert[0]), progress=True)
    assert 'class texts' in capsys.readouterr().out
    encode_classes(CLASSES, str(bert[0]))
    assert 'class texts' not in capsys.readouterr().out


@torch.no_grad()
def test_clip_gives_its_text_half(clip):
    folder, model, tokenizer = clip
    found = encode_classes(CLASSES, str(folder), pooling='cls')
    mean = encode_classes(CLASSES, str(folder))
    assert found.vectors.shape == (3, 6)
    assert mean.vectors.shape == (3, 8)
    for i, text in enumerate(found.texts):
        ids = tokenizer(text, return_tensors='pt')
        output = model.text_model(**ids)
        expected = model.text_projection(output.pooler_output)[0]
        torch.testing.assert_close(found.vectors[i], expected)
        expected = output.last_hidden_state[0, 1:-1].mean(0)
        torch.testing.assert_close(mean.vectors[i], expected)


def test_clip_without_projection(clip, tmp_path):
    _, model, tokenizer = clip
    tokenizer.save_pretrained(tmp_path)
    transformers.CLIPTextModel.from_pretrained(clip[0]).save_pretrained(
        tmp_path)
    expected = encode_classes(CLASSES, str(clip[0])).vectors
    found = encode_classes(CLASSES, str(tmp_path)).vectors
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match='lacks 1 of its weights'):
        encode_classes(CLASSES, str(tmp_path), pooling='cls')


@pytest.mark.parametrize('text, words', [
    ('rov', 'knows nothing'),
    ('crab crab crab crab crab crab crab', 'has 9 tokens'),
])
def test_text_that_the_model_cannot_take(bert, text, words):
    with pytest.raises(ValueError, match=words):
        encode_classes(['rov'], str(bert[0]), {'rov': text})


def test_unknown_pooling(bert):
    with pytest.raises(ValueError, match="'first_layer'"):
        encode_classes(CLASSES, str(bert[0]), pooling='max')


def test_model_that_is_not_there(tmp_path):
    for name in ('nobody/nothing', str(tmp_path)):
        with pytest.raises(OSError, match='neither a folder'):
            encode_classes(CLASSES, name)


def test_weights_that_are_missing(bert, tmp_path):
    folder, model = bert
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / 'config.json').read_text())
    config['num_hidden_layers'] = 3
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='would be random'):
        encode_classes(CLASSES, str(tmp_path))


def test_without_transformers(monkeypatch):
    monkeypatch.setattr(class_encoder, 'is_installed', lambda name: False)
    with pytest.raises(ImportError, match='char-ngrams'):
        encode_classes(CLASSES)
    assert len(encode_classes(CLASSES, 'char-ngrams').vectors) == 3
