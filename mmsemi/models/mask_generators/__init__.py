# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .base import GeneratedMasks, MaskGenerator
from .felzenszwalb import FelzenszwalbGenerator
from .sam_generator import SAMGenerator
from .sam_predictor import ImageEmbedding, SAMPredictor
from .tiny_sam import build_tiny_sam

__all__ = [
    'FelzenszwalbGenerator', 'GeneratedMasks', 'ImageEmbedding',
    'MaskGenerator', 'SAMGenerator', 'SAMPredictor', 'build_tiny_sam'
]
