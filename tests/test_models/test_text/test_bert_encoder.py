# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Sentences to features, offline."""
import pytest
import torch

from mmsemi.models.text import BertTextEncoder
from mmsemi.registry import MODELS

WORDS = ['the', 'red', 'Three', 'left', '-', 'most']
CONFIG = dict(
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=24)


def make(**kwargs) -> BertTextEncoder:
    torch.manual_seed(0)
    settings = dict(config=CONFIG, vocab=WORDS)
    return MODELS.build(
        dict(type='mmsemi.BertTextEncoder', **{
            **settings,
            **kwargs
        }))


def test_tokens():
    """[PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then the words."""
    encoder = make(max_length=6)
    ids, mask = encoder.tokenize(
        ['The RED zebra', '', 'left-most red three red'])
    assert ids.tolist() == [[2, 5, 6, 1, 3, 0], [2, 3, 0, 0, 0, 0],
                            # Cut after the special tokens were added.
                            [2, 8, 9, 10, 6, 7]]
    assert mask.sum(1).tolist() == [5, 2, 6]
    assert mask.dtype == torch.bool
    assert [part.shape for part in encoder.tokenize([])] == [(0, 6)] * 2


def test_features_do_not_depend_on_the_batch():
    encoder = make().eval()
    both, mask = encoder(['the red three', 'left'])
    alone, _ = encoder(['left'])
    assert both.shape == (2, 20, 8) and mask.shape == (2, 20)
    assert encoder.out_channels == 8
    torch.testing.assert_close(both[1:], alone)
    assert not torch.allclose(both[0, 0], both[1, 0])
    assert not any('pooler' in key for key in encoder.state_dict())


@pytest.mark.parametrize('number, trained', [
    (None, {'embeddings', '0', '1', '2'}),
    (2, {'0', '1'}),
    (0, set()),
])
def test_trained_layers(number, trained):
    encoder = make(num_trained_layers=number)
    found = {
        'embeddings' if '.embeddings.' in name else name.split('.')[3]
        for name, param in encoder.named_parameters() if param.requires_grad
    }
    assert found == trained


@pytest.mark.parametrize('train_dropout', [False, True])
def test_dropout(train_dropout):
    config = dict(CONFIG, hidden_dropout_prob=.5)
    encoder = make(config=config, train_dropout=train_dropout).train()
    assert encoder.training
    assert encoder.bert.training is train_dropout
    first, second = encoder(['red'])[0], encoder(['red'])[0]
    assert torch.equal(first, second) is not train_dropout
    assert not encoder.eval().bert.training


def test_vocabulary_from_a_file(tmp_path):
    path = tmp_path / 'vocab.txt'
    tokens = [
        '[PAD]', '[unused0]', '[UNK]', '[CLS]', '[SEP]', 'red', '##dish',
        '[MASK]'
    ]
    path.write_text('\n'.join(tokens), encoding='utf-8')
    encoder = make(vocab=None, vocab_file=str(path), max_length=5)
    ids, _ = encoder.tokenize(['reddish'])
    assert ids.tolist() == [[3, 5, 6, 4, 0]]
    assert encoder.bert.config.vocab_size == 8
    path.write_text('red\nblue', encoding='utf-8')
    with pytest.raises(ValueError, match=r"lacks \['\[PAD\]'"):
        make(vocab=None, vocab_file=str(path))


def test_weights_and_tokeniser_from_a_folder(tmp_path):
    """A folder as transformers writes it; nothing else gives weights."""
    first = make()
    first.bert.save_pretrained(tmp_path)
    (tmp_path / 'vocab.txt').write_text(
        '\n'.join(first.tokenizer.get_vocab()), encoding='utf-8')
    first.tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(1)
    second = MODELS.build(
        dict(type='mmsemi.BertTextEncoder', model=str(tmp_path)))
    key = 'bert.encoder.layer.2.output.dense.weight'
    before = second.state_dict()[key].clone()
    assert not torch.equal(before, first.state_dict()[key])
    second.init_weights()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    sentences = ['the red three', 'left']
    torch.testing.assert_close(second.eval()(sentences),
                               first.eval()(sentences))
    # Of another size than the config says.
    wrong = MODELS.build(
        dict(
            type='mmsemi.BertTextEncoder',
            model=str(tmp_path),
            config=dict(CONFIG, vocab_size=11, num_hidden_layers=4)))
    with pytest.raises(ValueError, match='do not fit text_encoder.config'):
        wrong.init_weights()


@pytest.mark.parametrize('settings, message', [
    (dict(config=None), 'needs text_encoder.model'),
    (dict(vocab=None), r'no tokeniser; give the words'),
    (dict(vocab_file='a'), 'vocab and vocab_file'),
    (dict(vocab=[]), r'vocab=\[\]; a list of words'),
    (dict(vocab='red'), "vocab='red'; a list of words"),
    (dict(max_length=2), 'max_length=2; allowed are numbers from 3 to 24'),
    (dict(max_length=25), 'max_length=25'),
    (dict(num_trained_layers=4), 'None and numbers from 0 to 3'),
    (dict(config=dict(CONFIG, layers=3)), r"config has the fields \['layers"),
    (dict(config=dict(CONFIG, vocab_size=6)), 'vocab_size=6, but .* has 11'),
    (dict(config=dict(CONFIG, num_attention_heads=3)), 'text_encoder.config:'),
])
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_wrong_input(tmp_path):
    encoder = make()
    for sentences in ('red', [None], ['red', 3]):
        with pytest.raises(TypeError, match='a list of strings'):
            encoder(sentences)
    with pytest.raises(FileNotFoundError, match='vocab_file'):
        make(vocab=None, vocab_file=str(tmp_path / 'no.txt'))
    missing = str(tmp_path / 'none')
    with pytest.raises(OSError, match='text_encoder.model=.* is neither'):
        make(model=missing, config=None)
    # With a config, model and tokeniser are read when they are needed.
    late = make(model=missing, vocab=None, config=dict(CONFIG, vocab_size=9))
    for call in (late.init_weights, lambda: late(['red'])):
        with pytest.raises(OSError, match='text_encoder.model=.* is neither'):
            call()
