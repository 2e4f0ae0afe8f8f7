# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from mmsemi.compat import is_installed
from mmsemi.structures.confusion_matrix import ConfusionMatrix
from .boundary_iou import boundary_overlaps, mask_boundary
from .calibration_metric import CalibrationMetric
from .confusion_picture import draw_confusion_matrix
from .dump_semantic_results import DumpSemanticResults
from .referring_metric import ReferringMetric, referring_metrics

__all__ = [
    'CalibrationMetric', 'ConfusionMatrix', 'DumpSemanticResults',
    'ReferringMetric', 'boundary_overlaps', 'draw_confusion_matrix',
    'mask_boundary', 'referring_metrics'
]

if is_installed('mmdet'):
    from .lvis_metric import LVISMetric
    __all__ += ['LVISMetric']

if is_installed('mmseg'):
    from .semantic_metric import SemanticMetric
    __all__ += ['SemanticMetric']
