# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from .calibration_files import load_calibration, save_calibration
from .calibration_measures import (bin_gaps, calibration_error,
                                   collect_statistics, debiased_squared_error,
                                   excess_calibration_error, group_means,
                                   marginal_statistics, null_calibration_error,
                                   pixel_weights)
from .calibration_stages import (CalibratePixels, CalibrateScores,
                                 CalibrationStage)
from .class_calibrator import ClassCalibrator
from .class_hierarchy import (frequency_groups, quantile_groups,
                              read_class_groups)
from .class_statistics import ClassStatistics
from .frequency_thresholds import frequency_thresholds
from .instance_filters import (FilterByArea, FilterByMaskCells,
                               FilterByMaskQuality, FilterByScore,
                               KeepTopScores, RemoveDuplicates,
                               SkipUncertainImages)
from .mask_overlap import mask_iou
from .outcomes import PredictionOutcomes, instance_overlaps, judge_predictions
from .pipeline import PseudoLabelPipeline, PseudoLabelStage
from .pixel_filters import (KeepAboveAdaptiveThreshold,
                            KeepAboveClassThresholds, KeepConfidentPixels,
                            KeepLowEntropyPixels)
from .quality import (PseudoLabelQuality, measure_pseudo_labels,
                      quality_of_groups)
from .soft_label_correction import correct_marginals, replace_confidence
from .soft_label_stages import SharpenSoftLabels

__all__ = [
    'CalibratePixels', 'CalibrateScores', 'CalibrationStage',
    'ClassCalibrator', 'ClassStatistics', 'FilterByArea', 'FilterByMaskCells',
    'FilterByMaskQuality', 'FilterByScore', 'KeepAboveAdaptiveThreshold',
    'KeepAboveClassThresholds', 'KeepConfidentPixels', 'KeepLowEntropyPixels',
    'KeepTopScores', 'PredictionOutcomes', 'PseudoLabelPipeline',
    'PseudoLabelQuality', 'PseudoLabelStage', 'RemoveDuplicates',
    'SharpenSoftLabels', 'SkipUncertainImages', 'bin_gaps',
    'calibration_error', 'collect_statistics', 'correct_marginals',
    'debiased_squared_error', 'excess_calibration_error', 'frequency_groups',
    'frequency_thresholds', 'group_means', 'instance_overlaps',
    'judge_predictions', 'load_calibration', 'marginal_statistics', 'mask_iou',
    'measure_pseudo_labels', 'null_calibration_error', 'pixel_weights',
    'quality_of_groups', 'quantile_groups', 'read_class_groups',
    'replace_confidence', 'save_calibration'
]
