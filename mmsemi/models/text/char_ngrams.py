# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Text vectors from spelling alone, where no language model is at hand."""
import hashlib
from typing import List, Sequence

import torch
from torch import Tensor

#: Name of this encoder among the models.
CHAR_NGRAMS = 'char-ngrams'
LENGTHS = (1, 2, 3, 4)
NUM_CHANNELS = 256


def char_ngrams(text: str, lengths: Sequence[int] = LENGTHS) -> List[str]:
    """Cut the words of a text into overlapping pieces.

    Args:
        text (str): The text.
        lengths (Sequence[int]): Numbers of characters. Defaults to
            (1, 2, 3, 4).

    Returns:
        list[str]: With repetitions; words are cut with a mark at both ends,
        and are pieces too, so that short and equal ends tell less.
    """
    pieces = []
    for word in text.split():
        marked = f'<{word}>'
        pieces.append(marked)
        for length in lengths:
            pieces += (
                marked[i:i + length]
                for i in range(len(marked) - length + 1))
    return [piece for piece in pieces if piece not in '<>']


def char_ngram_vectors(texts: Sequence[str],
                       num_channels: int = NUM_CHANNELS) -> Tensor:
    """Encode texts by their spelling; needs no weights and no network.

    The vector of a text is the mean over its :func:`char_ngrams`, each of
    which is 1 or -1 in one channel, both drawn by a hash of the piece (the
    hashing trick: K. Weinberger et al., Feature Hashing for Large Scale
    Multitask Learning, ICML 2009).

    Texts are near each other if they are spelled alike. These vectors know
    nothing of meaning: they name the classes apart, they do not describe
    them. Take them for tests, for demonstrations without network and as the
    baseline that a language model has to beat.

    Args:
        texts (Sequence[str]): One per class, none blank.
        num_channels (int): Width D of the vectors. Defaults to 256.

    Returns:
        Tensor: (C, D) float32, the same on every machine.
    """
    vectors = torch.zeros((len(texts), num_channels), dtype=torch.float64)
    for vector, text in zip(vectors, texts):
        pieces = char_ngrams(text)
        for piece in pieces:
            digest = hashlib.sha256(piece.encode('utf-8')).digest()
            channel = int.from_bytes(digest[:8], 'little') % num_channels
            vector[channel] += 1 if digest[8] % 2 else -1
        vector /= len(pieces)
    return vectors.float()
