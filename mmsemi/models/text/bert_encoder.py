# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""BERT inside a model that learns."""
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmsemi.compat import install_command, is_installed
from mmsemi.registry import MODELS

SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')


@MODELS.register_module()
class BertTextEncoder(BaseModule):
    """Sentences to features of their word pieces, by BERT.

    Weights of ``model`` are loaded by :meth:`init_weights`, and its
    tokeniser when the first sentence comes, so that with ``config`` a model
    can be built without network. Without ``model`` the weights are random.

    A sentence becomes [CLS], its word pieces, [SEP]; what is longer than
    ``max_length`` is cut after that, so that long sentences lose [SEP], as
    in LAVT's released code. All are padded to ``max_length``: then a
    sentence's features do not depend on those that it is read with.

    What LAVT's paper does not tell, and its released code does: the first
    ten of twelve layers learn (``num_trained_layers=10``), embeddings and
    the last two layers stay; dropout is off in training, while SemiRES's
    second stage has it on (``train_dropout``).

    Args:
        model (str, optional): Name on the Hugging Face hub, such as
            'bert-base-uncased', or a folder with ``config.json``, weights
            and the tokeniser. Defaults to None: random weights.
        config (dict, optional): Fields of transformers' ``BertConfig``.
            ``vocab_size`` is that of ``vocab`` if not given. Defaults to
            None: that of ``model``, read when the model is built.
        vocab (Sequence[str], optional): Words of a small vocabulary, instead
            of the tokeniser of ``model``. Special tokens are put before
            them; other words become [UNK]. Defaults to None.
        vocab_file (str, optional): A ``vocab.txt`` of BERT, one token per
            line, instead of ``vocab``. Defaults to None.
        max_length (int): Word pieces, [CLS] and [SEP] included; at least 3.
            Defaults to 20.
        num_trained_layers (int, optional): So many first layers learn, the
            embeddings and the other layers do not; 0 for none. Defaults to
            None: everything learns.
        train_dropout (bool): Whether dropout is on in training. Defaults to
            False.

    Raises:
        FileNotFoundError: If there is no ``vocab_file``.
        ImportError: If transformers is not installed.
        OSError: If ``model`` is no folder and cannot be fetched.
        ValueError: If an argument is out of range.

    Sources: Devlin et al., BERT, NAACL 2019; Yang et al., LAVT, CVPR 2022.
    """

    def __init__(self,
                 model: Optional[str] = None,
                 config: Optional[dict] = None,
                 vocab: Optional[Sequence[str]] = None,
                 vocab_file: Optional[str] = None,
                 max_length: int = 20,
                 num_trained_layers: Optional[int] = None,
                 train_dropout: bool = False) -> None:
        # An init_cfg would only serve to overwrite the weights.
        super().__init__(init_cfg=None)
        if not is_installed('transformers'):
            raise ImportError(
                'mmsemi.BertTextEncoder needs transformers. Install it:\n  '
                f'{install_command(["transformers"])}')
        if model is None and config is None:
            raise ValueError(
                'mmsemi.BertTextEncoder needs text_encoder.model (weights) '
                'or text_encoder.config (an architecture with random '
                'weights).')
        if vocab is not None and vocab_file is not None:
            raise ValueError('text_encoder has vocab and vocab_file; give '
                             'one of them.')
        if model is None and vocab is None and vocab_file is None:
            raise ValueError(
                'text_encoder.model=None has no tokeniser; give the words '
                '(text_encoder.vocab) or a file (text_encoder.vocab_file).')
        self.model_name = model
        self.max_length = max_length
        self.train_dropout = train_dropout
        self._tokenizer = None
        if vocab is not None:
            self._tokenizer = _small_tokenizer(vocab)
        elif vocab_file is not None:
            self._tokenizer = _file_tokenizer(vocab_file)
        if config is not None and self._tokenizer is not None:
            config = {'vocab_size': len(self._tokenizer), **config}
        self.bert = _build(
            _read_config(model) if config is None else _make_config(config))
        self._check_vocabulary()
        self.out_channels = self.bert.config.hidden_size
        limit = self.bert.config.max_position_embeddings
        if not 3 <= max_length <= limit:
            raise ValueError(f'text_encoder.max_length={max_length}; allowed '
                             f'are numbers from 3 to {limit}.')
        self._freeze(num_trained_layers)

    def _freeze(self, num_trained_layers: Optional[int]) -> None:
        self.num_trained_layers = num_trained_layers
        if num_trained_layers is None:
            return
        layers = self.bert.encoder.layer
        if not 0 <= num_trained_layers <= len(layers):
            raise ValueError(
                f'text_encoder.num_trained_layers={num_trained_layers}; '
                f'allowed are None and numbers from 0 to {len(layers)}.')
        self.bert.requires_grad_(False)
        layers[:num_trained_layers].requires_grad_(True)

    def init_weights(self) -> None:
        """Load the weights of ``model``.

        Without it, and when called again, the weights stay as they are.

        Raises:
            OSError: If the weights cannot be read.
            ValueError: If they do not fit the architecture.
        """
        if self.model_name is not None and not self._is_init:
            self.bert.load_state_dict(
                _read_weights(self.model_name, self.bert))
        self._is_init = True

    def train(self, mode: bool = True) -> 'BertTextEncoder':
        """Set the mode; without ``train_dropout`` BERT always evaluates."""
        super().train(mode)
        self.bert.train(mode and self.train_dropout)
        return self

    @property
    def tokenizer(self) -> Any:
        """Tokenizer: That of transformers; read when it is first needed."""
        if self._tokenizer is None:
            self._tokenizer = _read_tokenizer(self.model_name)
            self._check_vocabulary()
        return self._tokenizer

    def _check_vocabulary(self) -> None:
        num = 0 if self._tokenizer is None else len(self._tokenizer)
        known = self.bert.config.vocab_size
        if num > known:
            raise ValueError(
                f'text_encoder.config.vocab_size={known}, but the vocabulary '
                f'has {num} tokens.')

    def tokenize(self, sentences: Sequence[str]) -> Tuple[Tensor, Tensor]:
        """Turn sentences into numbers.

        Args:
            sentences (Sequence[str]): B sentences; lower case makes no
                difference.

        Returns:
            tuple[Tensor, Tensor]: Numbers (B, max_length) int64 and a mask
            of the same shape, bool, False on padding.

        Raises:
            TypeError: If they are no list of strings.
        """
        if isinstance(sentences, str) or not all(
                isinstance(sentence, str) for sentence in sentences):
            raise TypeError(f'sentences={sentences!r:.80}; a list of strings '
                            'is needed.')
        tokenizer = self.tokenizer
        shape = (len(sentences), self.max_length)
        ids = torch.full(shape, tokenizer.pad_token_id or 0)
        mask = torch.zeros(shape, dtype=torch.bool)
        # Its own truncation would keep the last token.
        pieces = tokenizer(list(sentences), verbose=False)['input_ids'] \
            if sentences else []
        for row, known, piece in zip(ids, mask, pieces):
            piece = piece[:self.max_length]
            row[:len(piece)] = torch.tensor(piece)
            known[:len(piece)] = True
        return ids, mask

    def forward(self, sentences: Sequence[str]) -> Tuple[Tensor, Tensor]:
        """Encode sentences.

        Args:
            sentences (Sequence[str]): B sentences.

        Returns:
            tuple[Tensor, Tensor]: Features (B, T, D) of the last layer,
            where T is ``max_length``, and their mask (B, T) bool, False on
            padding.
        """
        device = next(self.bert.parameters()).device
        ids, mask = (part.to(device) for part in self.tokenize(sentences))
        output = self.bert(input_ids=ids, attention_mask=mask.long())
        return output.last_hidden_state, mask


def _small_tokenizer(words: Sequence[str]) -> Any:
    from transformers import BertTokenizer
    if isinstance(words, str) or not len(words) or not all(
            isinstance(word, str) and word for word in words):
        raise ValueError(f'text_encoder.vocab={words!r:.80}; a list of words '
                         'is needed.')
    tokens = dict.fromkeys((*SPECIAL_TOKENS, *(w.lower() for w in words)))
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})


def _file_tokenizer(path: str) -> Any:
    from transformers import BertTokenizer
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f'text_encoder.vocab_file={path!r} does not '
                                'exist.')
    tokens = file.read_text(encoding='utf-8').splitlines()
    missing = [token for token in SPECIAL_TOKENS[:4] if token not in tokens]
    if missing:
        raise ValueError(f'text_encoder.vocab_file={path!r} lacks {missing}; '
                         'a vocab.txt of BERT has one token per line.')
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})


def _read_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(_unreadable(name, error)) from error


def _make_config(fields: dict) -> Any:
    from transformers import BertConfig
    unknown = sorted({*fields} - {*BertConfig().to_dict()})
    if unknown:
        raise ValueError(f'text_encoder.config has the fields {unknown}, '
                         'which BertConfig of transformers does not know.')
    return BertConfig(**fields)


def _read_config(name: str) -> Any:
    from transformers import AutoConfig
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(_unreadable(name, error)) from error
    if config.model_type != 'bert':
        raise ValueError(f'text_encoder.model={name!r} is of type '
                         f"{config.model_type!r}; allowed is 'bert'.")
    return config


def _build(config: Any) -> Any:
    from transformers import BertModel
    try:
        return BertModel(config, add_pooling_layer=False)
    except ValueError as error:
        raise ValueError(f'text_encoder.config: {error}') from error


def _read_weights(name: str, model: Any) -> dict:
    """Return the weights as the state dict of a model of this config."""
    try:
        loaded, info = type(model).from_pretrained(
            name,
            config=model.config,
            add_pooling_layer=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True)
    except (OSError, ValueError) as error:
        raise OSError(_unreadable(name, error)) from error
    wrong: List[str] = sorted(
        {*info['missing_keys'],
         *(entry[0] for entry in info['mismatched_keys'])})
    if wrong:
        raise ValueError(
            f'The weights of text_encoder.model={name!r} do not fit '
            f'text_encoder.config: {len(wrong)} are missing or of another '
            f'shape, among them {wrong[:3]}.')
    return loaded.state_dict()


def _unreadable(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return (f'text_encoder.model={name!r} is neither a folder with '
            'config.json, weights and vocab.txt nor a model that the Hugging '
            'Face hub lets this machine fetch (network? name?). transformers '
            f'says: {reason[0]}')
