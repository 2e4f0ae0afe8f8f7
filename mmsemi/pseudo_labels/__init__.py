# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .instance_filters import (FilterByArea, FilterByMaskQuality,
                               FilterByScore, KeepTopScores, RemoveDuplicates,
                               SkipUncertainImages)
from .mask_overlap import mask_iou
from .pipeline import PseudoLabelPipeline, PseudoLabelStage
from .pixel_filters import (KeepAboveAdaptiveThreshold,
                            KeepAboveClassThresholds, KeepConfidentPixels,
                            KeepLowEntropyPixels)
from .quality import PseudoLabelQuality, measure_pseudo_labels

__all__ = [
    'FilterByArea', 'FilterByMaskQuality', 'FilterByScore',
    'KeepAboveAdaptiveThreshold', 'KeepAboveClassThresholds',
    'KeepConfidentPixels',
    'KeepLowEntropyPixels', 'KeepTopScores',
    'PseudoLabelPipeline', 'PseudoLabelQuality', 'PseudoLabelStage',
    'RemoveDuplicates', 'SkipUncertainImages', 'mask_iou',
    'measure_pseudo_labels'
]
