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
from .pixel_weighting import PixelWeighting, pixel_weight
from .proposal_matching import (match_proposals, match_proposals_batch,
                                select_proposals)
from .proposal_refinement import RefineByProposals
from .quality import (PseudoLabelQuality, measure_pseudo_labels,
                      quality_of_groups)
from .refinement_counts import RefinementCounts, count_refinements
from .sam_refinement import SAMRefine
from .soft_label_correction import correct_marginals, replace_confidence
from .soft_label_stages import SharpenSoftLabels
from .stage_samples import stage_samples

__all__ = [
    'CalibratePixels', 'CalibrateScores', 'CalibrationStage',
    'ClassCalibrator', 'ClassStatistics', 'FilterByArea', 'FilterByMaskCells',
    'FilterByMaskQuality', 'FilterByScore', 'KeepAboveAdaptiveThreshold',
    'KeepAboveClassThresholds', 'KeepConfidentPixels', 'KeepLowEntropyPixels',
    'KeepTopScores', 'PixelWeighting', 'PredictionOutcomes',
    'PseudoLabelPipeline', 'PseudoLabelQuality', 'PseudoLabelStage',
    'RefineByProposals', 'RefinementCounts', 'RemoveDuplicates', 'SAMRefine',
    'SharpenSoftLabels', 'SkipUncertainImages', 'bin_gaps',
    'calibration_error', 'collect_statistics', 'correct_marginals',
    'count_refinements', 'debiased_squared_error',
    'excess_calibration_error', 'frequency_groups',
    'frequency_thresholds', 'group_means', 'instance_overlaps',
    'judge_predictions', 'load_calibration', 'marginal_statistics', 'mask_iou',
    'match_proposals', 'match_proposals_batch', 'measure_pseudo_labels',
    'null_calibration_error', 'pixel_weight', 'pixel_weights',
    'quality_of_groups', 'quantile_groups', 'read_class_groups',
    'replace_confidence', 'save_calibration', 'select_proposals',
    'stage_samples'
]
