# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Text vectors of classes, and the file that keeps them."""
import hashlib
import json
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence, Tuple, Union

import torch
from torch import Tensor

FORMAT = 'mmsemi text embeddings 1'
TOOL = 'tools/encode_class_names.py'
FIELDS = ('classes', 'texts', 'vectors', 'model', 'pooling')


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """Text vectors of a list of classes, and where they come from.

    Args:
        classes (tuple[str]): The C names, in the data set's order.
        texts (tuple[str]): What was encoded, one per class.
        vectors (Tensor): (C, D) float32, as the encoder gave them: neither
            centred nor normalised.
        model (str): Name or folder of the encoder.
        pooling (str): How a text's tokens became one vector.

    Raises:
        TypeError: If a field is of another type.
        ValueError: If the numbers of rows differ, names repeat, or a vector
            has values that are no numbers.
    """

    classes: Tuple[str, ...]
    texts: Tuple[str, ...]
    vectors: Tensor
    model: str
    pooling: str

    def __post_init__(self) -> None:
        for field in ('classes', 'texts'):
            value = getattr(self, field)
            if not isinstance(value, (list, tuple)) or not all(
                    isinstance(name, str) for name in value):
                raise TypeError(f'TextEmbeddings.{field} must be a list of '
                                f'strings, got {value!r:.80}.')
            object.__setattr__(self, field, tuple(value))
        for field in ('model', 'pooling'):
            if not isinstance(getattr(self, field), str):
                raise TypeError(f'TextEmbeddings.{field} must be a string, '
                                f'got {getattr(self, field)!r:.80}.')
        vectors = self.vectors
        if not isinstance(vectors, Tensor) or (vectors.dtype
                                               is not torch.float32):
            raise TypeError('TextEmbeddings.vectors must be a float32 '
                            'tensor.')
        number = len(self.classes)
        if (vectors.dim() != 2 or not vectors.numel()
                or not number == len(self.texts) == len(vectors)):
            raise ValueError(
                f'TextEmbeddings of {number} classes and {len(self.texts)} '
                f'texts has vectors of shape {tuple(vectors.shape)}; one '
                'text and one row per class is needed.')
        if len(set(self.classes)) < number:
            raise ValueError('TextEmbeddings.classes has a name twice: '
                             f'{", ".join(self.classes)}.')
        if not bool(vectors.isfinite().all()):
            raise ValueError('TextEmbeddings.vectors has values that are no '
                             'numbers.')
        object.__setattr__(self, 'vectors', vectors.detach().cpu().clone())

    @property
    def checksum(self) -> str:
        """str: SHA-256 over all fields, in hexadecimal digits."""
        header = json.dumps([
            FORMAT, self.classes, self.texts, self.model, self.pooling,
            list(self.vectors.shape)
        ])
        digest = hashlib.sha256(header.encode('utf-8'))
        digest.update(self.vectors.numpy().astype('<f4').tobytes())
        return digest.hexdigest()

    def for_classes(self, classes: Sequence[str]) -> 'TextEmbeddings':
        """Return these vectors if they are of these classes.

        Args:
            classes (Sequence[str]): The data set's classes, in its order.

        Returns:
            TextEmbeddings: Itself.

        Raises:
            ValueError: If the list or its order is another.
        """
        check_class_order(self.classes, classes)
        return self

    def save(self, path: Union[str, Path]) -> None:
        """Write a file; it appears whole or not at all.

        Args:
            path (str or Path): Where; missing folders are made.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {field: getattr(self, field) for field in FIELDS}
        content.update(
            format=FORMAT,
            classes=list(self.classes),
            texts=list(self.texts),
            checksum=self.checksum)
        handle, tmp = tempfile.mkstemp(
            prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
        try:
            with os.fdopen(handle, 'wb') as file:
                torch.save(content, file)
            # mkstemp makes files that only the owner can read.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(tmp, 0o666 & ~umask)
            os.replace(tmp, path)
        except BaseException:
            os.unlink(tmp)
            raise

    @classmethod
    def load(cls, path: Union[str, Path]) -> 'TextEmbeddings':
        """Read a file that :meth:`save` wrote.

        Args:
            path (str or Path): The file.

        Returns:
            TextEmbeddings: Its content.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is another kind of file, or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f'There is no file {path} of text embeddings. Make it with '
                f'{TOOL}; text_embeddings=dict(model="char-ngrams", '
                'classes=...) needs no file.')
        try:
            content = torch.load(path, map_location='cpu', weights_only=True)
        except (RuntimeError, EOFError, ValueError, KeyError,
                pickle.UnpicklingError) as error:
            raise ValueError(_damaged(path)) from error
        if not isinstance(content, dict) or content.get('format') != FORMAT:
            raise ValueError(f'{path} is no file of text embeddings; {TOOL} '
                             'makes one.')
        try:
            texts = cls(**{field: content[field] for field in FIELDS})
            intact = content['checksum'] == texts.checksum
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(_damaged(path)) from error
        if not intact:
            raise ValueError(_damaged(path))
        return texts


def check_class_order(known: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse another list of classes, or the same in another order.

    Args:
        known (Sequence[str]): The classes that have texts.
        classes (Sequence[str]): The data set's classes, in its order.

    Raises:
        ValueError: If they differ; the message names how.
    """
    known, classes = list(known), list(classes)
    if known == classes:
        return
    missing = [name for name in classes if name not in known]
    surplus = [name for name in known if name not in classes]
    if missing or surplus:
        how = (f'without text: {_short(missing)}; with text, but not in the '
               f'data: {_short(surplus)}')
    else:
        first = next(i for i, name in enumerate(known) if name != classes[i])
        how = (f'the same names in another order: class {first} is '
               f'{classes[first]!r} in the data and {known[first]!r} in the '
               'texts')
    raise ValueError(
        'The text embeddings are of other classes than the data ('
        f'{how}). Make them for metainfo.classes of the config with {TOOL}.')


def _short(names: Sequence[str]) -> str:
    if not names:
        return 'none'
    more = ' ...' if len(names) > 5 else ''
    return ', '.join(map(repr, names[:5])) + more


def _damaged(path: Path) -> str:
    return (f'The file of text embeddings {path} is damaged (its content '
            f'does not fit its checksum). Make it again with {TOOL}.')
