# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Turn names of classes into vectors with a language model."""
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from rich.progress import track
from torch import Tensor, nn

from mmsemi.compat import install_command, is_installed
from .char_ngrams import CHAR_NGRAMS, char_ngram_vectors
from .text_embeddings import TOOL, TextEmbeddings

DEFAULT_MODEL = 'allenai/scibert_scivocab_uncased'
POOLINGS = ('mean', 'cls', 'first_layer')
#: Whole CLIP models and their text halves.
CLIP_TYPES = ('clip', 'clip_text_model')

Texts = Union[Mapping[str, str], Sequence[str]]


def class_texts(classes: Sequence[str],
                texts: Optional[Texts] = None) -> Tuple[str, ...]:
    """Return what is encoded for each class.

    Args:
        classes (Sequence[str]): Names of the classes.
        texts (Mapping or Sequence[str], optional): Texts by name, for some
            classes or all, or one per class. Defaults to None.

    Returns:
        tuple[str]: Without override the name in lower case, with a space for
        every ``_``.

    Raises:
        TypeError: If something is no string.
        ValueError: If there is no class, a name repeats, a text is blank or
            that of two classes, or texts are of other classes.
    """
    if isinstance(classes, str) or not all(
            isinstance(name, str) for name in classes):
        raise TypeError(f'classes={classes!r:.80}; a list of names is needed.')
    if not len(classes) or len(set(classes)) < len(classes):
        raise ValueError(f'classes={list(classes)!r:.80}; names that differ '
                         'are needed, at least one.')
    if texts is None:
        texts = {}
    if not isinstance(texts, Mapping):
        if isinstance(texts, str) or len(texts) != len(classes):
            raise ValueError(
                f'texts={texts!r:.80}; one text for each of the '
                f'{len(classes)} classes is needed, or texts by name.')
        texts = dict(zip(classes, texts))
    unknown = [name for name in texts if name not in classes]
    if unknown:
        raise ValueError(f'texts are given for {unknown[:5]}, which are no '
                         f'classes; the classes are {list(classes)[:10]}.')
    found: List[str] = []
    for name in classes:
        text = texts.get(name, name.replace('_', ' ').lower())
        if not isinstance(text, str):
            raise TypeError(f'The text of class {name!r} must be a string, '
                            f'got {text!r:.80}.')
        text = ' '.join(text.split())
        if not text:
            raise ValueError(f'The text of class {name!r} is blank.')
        if text in found:
            raise ValueError(
                f'The classes {classes[found.index(text)]!r} and {name!r} '
                f'have the same text {text!r}, which cannot tell them apart. '
                'Give one another text (texts).')
        found.append(text)
    return tuple(found)


def encode_classes(classes: Sequence[str],
                   model: str = DEFAULT_MODEL,
                   texts: Optional[Texts] = None,
                   pooling: str = 'mean',
                   progress: bool = False) -> TextEmbeddings:
    """Encode the names of classes.

    SemInst (arXiv 2410.16063) takes SciBERT; which of its layers and tokens
    is not public. SciBERT has no objective on sentences, so the mean over
    word pieces is the default.

    Each text is encoded alone, in single precision on the CPU, so that its
    vector depends on no other.

    Args:
        classes (Sequence[str]): Names, in the data set's order.
        model (str): Name on the Hugging Face hub, or a folder, of a text
            encoder that transformers loads: BERT and its kin, CLIP (its text
            half), sentence encoders, T5's encoder. Or 'char-ngrams': see
            :func:`~mmsemi.models.text.char_ngram_vectors`. Defaults to
            SciBERT.
        texts (Mapping or Sequence[str], optional): What stands for a class
            instead of its name; see :func:`class_texts`.
        pooling (str): 'mean': over the word pieces of the last layer,
            special tokens left out; 'cls': the classification token of the
            last layer, for CLIP its projected end token, which it compares
            with images; 'first_layer': the mean over the word pieces after
            the first layer. Defaults to 'mean'.
        progress (bool): Show a progress bar. Defaults to False.

    Returns:
        TextEmbeddings: One row per class.

    Raises:
        ImportError: If transformers is not installed.
        OSError: If the model is no folder and cannot be fetched.
        TypeError: If a name or text is no string, or the model is one of
            images and text other than CLIP.
        ValueError: If an argument is out of range, or the model does not
            know a text.
    """
    found = class_texts(classes, texts)
    if pooling not in POOLINGS:
        raise ValueError(f'pooling={pooling!r}; allowed are '
                         f'{", ".join(map(repr, POOLINGS))}.')
    if model == CHAR_NGRAMS:
        if pooling != 'mean':
            raise ValueError(f'pooling={pooling!r}; with model='
                             f"'{CHAR_NGRAMS}' only 'mean' is allowed.")
        vectors = char_ngram_vectors(found)
    else:
        encoder = _Encoder(model, pooling)
        rows = track(
            found, description='class texts', disable=not progress)
        vectors = torch.stack([encoder(text) for text in rows])
    return TextEmbeddings(tuple(classes), found, vectors, model, pooling)


def load_text_embeddings(
        source: Union[str, Path, Mapping, TextEmbeddings]) -> TextEmbeddings:
    """Return text embeddings for a model; never loads a language model.

    Args:
        source (str, Path, Mapping or TextEmbeddings): A file; or arguments
            of :func:`encode_classes` with ``model='char-ngrams'``; or the
            embeddings themselves.

    Returns:
        TextEmbeddings: The embeddings.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the source is something else.
        ValueError: If the file is damaged, or another model is named.
    """
    if isinstance(source, TextEmbeddings):
        return source
    if isinstance(source, (str, Path)):
        return TextEmbeddings.load(source)
    if not isinstance(source, Mapping):
        raise TypeError(f'text_embeddings={source!r:.80}; allowed are a file, '
                        'a dict with model and classes, and TextEmbeddings.')
    allowed = ('classes', 'model', 'texts')
    wrong = sorted(set(source) - set(allowed))
    if wrong or 'classes' not in source:
        raise ValueError(
            f'text_embeddings has the fields {sorted(source)}; classes and '
            f'model are needed, and of {list(allowed)} are all.')
    if source.get('model') != CHAR_NGRAMS:
        raise ValueError(
            f'text_embeddings.model={source.get("model")!r}: only '
            f"'{CHAR_NGRAMS}' is encoded while a model is built. Encode the "
            f'names once with {TOOL} and give its file.')
    return encode_classes(**source)


class _Encoder:
    """A text encoder of transformers, from text to vector."""

    def __init__(self, name: str, pooling: str) -> None:
        if not is_installed('transformers'):
            raise ImportError(
                'Encoding names of classes needs transformers. Install it:'
                f'\n  {install_command(["transformers"])}\nor take the model '
                f"'{CHAR_NGRAMS}', which needs nothing.")
        self.name = name
        self.pooling = pooling
        self.tokenizer, self.model, self.clip = _load(name, pooling)
        limits = [
            limit
            for limit in (getattr(self.tokenizer, 'model_max_length', None),
                          getattr(self.model.config,
                                  'max_position_embeddings', None))
            if isinstance(limit, int)
        ]
        self.max_length = min(limits, default=512)

    @torch.no_grad()
    def __call__(self, text: str) -> Tensor:
        tokens = self.tokenizer(
            text,
            return_special_tokens_mask=True,
            return_attention_mask=True,
            return_tensors='pt')
        ids = tokens['input_ids']
        pieces = ~tokens['special_tokens_mask'][0].bool()
        self._check(text, ids[0], pieces)
        output = self.model(
            input_ids=ids,
            attention_mask=tokens['attention_mask'],
            output_hidden_states=True)
        if self.pooling == 'first_layer':
            # The first entry is what goes into the first layer.
            return output.hidden_states[1][0, pieces].mean(0)
        if self.pooling == 'mean':
            return output.last_hidden_state[0, pieces].mean(0)
        if self.clip:
            return output.text_embeds[0]
        places = (ids[0] == self.tokenizer.cls_token_id).nonzero()
        return output.last_hidden_state[0, places[0, 0]]

    def _check(self, text: str, ids: Tensor, pieces: Tensor) -> None:
        if len(ids) > self.max_length:
            raise ValueError(
                f'The text {text!r:.80} has {len(ids)} tokens, and '
                f'{self.name} takes {self.max_length}; give its class a '
                'shorter one (texts).')
        unknown = getattr(self.tokenizer, 'unk_token_id', None)
        known = [piece for piece in ids[pieces].tolist() if piece != unknown]
        if not known:
            raise ValueError(f'The vocabulary of {self.name} knows nothing '
                             f'of the text {text!r}; give its class another '
                             'one (texts).')


def _load(name: str, pooling: str) -> Tuple[Any, nn.Module, bool]:
    """Return tokenizer and model, and whether it is CLIP's."""
    import transformers
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        clip = config.model_type in CLIP_TYPES
        if not clip and hasattr(config, 'vision_config'):
            raise TypeError(
                f'The text model {name!r} is of type {config.model_type!r}; '
                'of models of images and text only CLIP is known.')
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model_type = (transformers.CLIPTextModelWithProjection
                      if clip else transformers.AutoModel)
        options: Dict[str, Any] = {}
        if config.model_type == 'clip':
            options['config'] = config.text_config
        # Where weights are no safetensors, transformers unpickles tensors
        # alone.
        model, info = model_type.from_pretrained(
            name,
            dtype=torch.float32,
            output_loading_info=True,
            **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise OSError(
            f'The text model {name!r} is neither a folder with config, '
            'weights and tokenizer nor a model that the Hugging Face hub '
            'lets this machine fetch (network? name? licence accepted?). '
            f'transformers says: {reason[0]}') from error
    _check_weights(name, info, pooling)
    if getattr(config, 'is_encoder_decoder', False):
        model = model.get_encoder()
    if (pooling == 'cls' and not clip
            and getattr(tokenizer, 'cls_token_id', None) is None):
        raise ValueError(f"pooling='cls': {name} has no classification "
                         "token; take 'mean' or 'first_layer'.")
    return tokenizer, model.eval(), clip


def _check_weights(name: str, info: Mapping, pooling: str) -> None:
    """Refuse a model of which transformers made up a part that counts."""
    missing = sorted(
        key for key in
        {*info['missing_keys'], *(e[0] for e in info['mismatched_keys'])}
        # Nobody asks BERT's pooler, nor CLIP's projection for a mean.
        if 'pooler' not in key and (
            'text_projection' not in key or pooling == 'cls'))
    if missing:
        raise ValueError(
            f'The text model {name!r} lacks {len(missing)} of its weights, '
            f'among them {missing[:3]}; its vectors would be random.')
