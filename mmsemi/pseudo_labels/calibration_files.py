# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Keep what calibration stages have counted in a file."""
from pathlib import Path
from typing import Sequence, Union

import torch
from torch import Tensor

from .calibration_stages import CalibrationStage

KEY = 'calibration'


def save_calibration(stages: Sequence[CalibrationStage],
                     path: Union[str, Path]) -> None:
    """Write the statistics and groups of stages.

    Args:
        stages (Sequence[CalibrationStage]): In the order of the pipeline.
        path (str or Path): File to write; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        dict(
            statistics=stage.calibrator.statistics.cpu(),
            groups=stage.calibrator.groups.cpu()) for stage in stages
    ]
    torch.save({KEY: parts}, path)


@torch.no_grad()
def load_calibration(stages: Sequence[CalibrationStage],
                     path: Union[str, Path]) -> None:
    """Take over statistics and fit the maps to them.

    Groups are taken over where all classes are in one group. No code in the
    file is run.

    Args:
        stages (Sequence[CalibrationStage]): As many as were saved, in their
            order.
        path (str or Path): From :func:`save_calibration`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, or of other stages.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no calibration file {path}.')
    try:
        loaded = torch.load(path, map_location='cpu', weights_only=True)
        parts = [(part['statistics'], part['groups'])
                 for part in loaded[KEY]]
    # Bytes that are no such file can make it fail in any way.
    except Exception as error:
        raise ValueError(
            f'{path} is no calibration file, such as tools/analysis/'
            f'cross_fit_calibration.py writes. {type(error).__name__}: '
            f'{str(error)[:200]}') from error
    if len(parts) != len(stages):
        raise ValueError(
            f'{path} has the statistics of {len(parts)} calibration stages, '
            f'but the pseudo-label pipeline has {len(stages)}.')
    for stage, (statistics, groups) in zip(stages, parts):
        _check(stage, statistics, groups, path)
    for stage, (statistics, groups) in zip(stages, parts):
        calibrator = stage.calibrator
        if not bool(calibrator.groups.any()):
            calibrator.set_groups(groups.tolist())
        calibrator.statistics.copy_(statistics)
        calibrator.pending.zero_()
        calibrator.fit()


def _check(stage: CalibrationStage, statistics: Tensor, groups: Tensor,
           path: Union[str, Path]) -> None:
    expected = stage.calibrator.statistics
    shapes = [
        tuple(part.shape) if isinstance(part, Tensor) else None
        for part in (statistics, groups)
    ]
    if shapes != [expected.shape, expected.shape[:1]]:
        raise ValueError(
            f'{path} has statistics of shape {shapes[0]}, but '
            f'{type(stage).__name__}.calibrator has num_classes='
            f'{expected.shape[0]} and num_bins={expected.shape[1]}.')
    # No sum of confidences or outcomes is above the count.
    most = statistics[..., :1] * (1 + 1e-5)
    if not bool(((statistics >= 0) & (statistics <= most)
                 & statistics.isfinite()).all()):
        raise ValueError(f'{path} holds statistics that no predictions can '
                         'have.')
