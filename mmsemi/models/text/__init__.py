# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .bert_encoder import BertTextEncoder
from .char_ngrams import CHAR_NGRAMS, char_ngram_vectors
from .class_encoder import (DEFAULT_MODEL, POOLINGS, class_texts,
                            encode_classes, load_text_embeddings)
from .text_embeddings import TextEmbeddings, check_class_order

__all__ = [
    'BertTextEncoder', 'CHAR_NGRAMS', 'DEFAULT_MODEL', 'POOLINGS',
    'TextEmbeddings', 'char_ngram_vectors', 'check_class_order',
    'class_texts', 'encode_classes', 'load_text_embeddings'
]
