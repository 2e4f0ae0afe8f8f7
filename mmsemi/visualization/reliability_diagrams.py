# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from pathlib import Path
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mmsemi.pseudo_labels.calibration_measures import (bin_gaps,
                                                       calibration_error,
                                                       class_counts)

OUTCOME_COLOUR, GAP_COLOUR = '#4c72b0', '#c44e52'


def draw_reliability_diagrams(
        statistics: Tensor,
        groups: Union[Sequence[int], Tensor, None] = None,
        group_names: Optional[Sequence[str]] = None,
        title: Optional[str] = None,
        path: Union[str, Path, None] = None) -> np.ndarray:
    """Draw how often predictions of each confidence are right.

    One diagram for all classes and one for each group. Bars show the mean
    outcome of a bin and what is missing to, or beyond, its mean confidence;
    on the diagonal confidence is right. Below stands how the predictions
    are spread. The numbers are means over the classes, in which each counts
    alike, while bars pool the predictions.

    Args:
        statistics (Tensor): Count, sum of confidences and sum of outcomes
            (C, B, 3), such as ``ClassCalibrator.statistics``.
        groups (Sequence[int] or Tensor, optional): Group of each class (C,),
            from 0. Defaults to None: all classes only.
        group_names (Sequence[str], optional): Names of the groups. Defaults
            to None: numbers.
        title (str, optional): Written above. Defaults to None.
        path (str or Path, optional): Picture to write; its folder is made,
            the ending says the format. Defaults to None: none.

    Returns:
        np.ndarray: The picture (H, W, 3), uint8, RGB.
    """
    members = _members(len(statistics), groups, group_names)
    figure = Figure(
        figsize=(3 * len(members) + 0.4, 4.4), layout='constrained')
    canvas = FigureCanvasAgg(figure)
    statistics = statistics.detach().cpu().double()
    axes = figure.subplots(
        2,
        len(members),
        squeeze=False,
        sharex=True,
        sharey='row',
        height_ratios=(3, 1))
    if title is not None:
        figure.suptitle(title)
    for column, (name, mask) in enumerate(members):
        _draw_diagram(*axes[:, column], name, statistics[mask])
    axes[0, 0].set_ylabel('outcome')
    axes[1, 0].set_ylabel('share of\npredictions')
    figure.supxlabel('confidence', fontsize='medium')
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    return picture


def _members(num_classes: int, groups: Union[Sequence[int], Tensor, None],
             names: Optional[Sequence[str]]) -> List[Tuple[str, Tensor]]:
    """Return names of the diagrams and their classes, (C,) bool."""
    members = [('all', torch.ones(num_classes, dtype=torch.bool))]
    if groups is not None:
        groups = torch.as_tensor(groups).cpu()
        if names is None:
            names = [str(i) for i in range(int(groups.max()) + 1)]
        members += [(name, groups == i) for i, name in enumerate(names)]
    return members


def _draw_diagram(axes: Axes, below: Axes, name: str,
                  statistics: Tensor) -> None:
    """Draw the classes of one group, pooled, and their numbers."""
    pooled = statistics.sum(0)
    count = pooled[:, 0]
    num_bins = len(count)
    centres = (np.arange(num_bins) + 0.5) / num_bins
    used = (count > 0).numpy()
    outcome = (pooled[:, 2] / count).numpy()[used]
    gap = bin_gaps(pooled[None])[0].numpy()[used]
    width = 0.92 / num_bins
    axes.bar(centres[used], outcome, width, color=OUTCOME_COLOUR)
    axes.bar(
        centres[used],
        -gap,
        width,
        bottom=outcome,
        facecolor='none',
        edgecolor=GAP_COLOUR,
        hatch='////',
        linewidth=0.8)
    axes.plot([0, 1], [0, 1], color='grey', linestyle='--', linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    error = calibration_error(statistics)
    signed = calibration_error(statistics, signed=True)
    text = f'{int((~error.isnan()).sum())} of {len(error)} classes'
    if not error.isnan().all():
        text += (f'\nerror {float(error.nanmean()):.3f}'
                 f'\nsigned {float(signed.nanmean()):+.3f}')
    axes.text(
        0.03, 0.97, text, va='top', fontsize=8, transform=axes.transAxes)
    total = float(class_counts(statistics).sum())
    axes.set_title(f'{name} ({total:.0f})', fontsize='medium')
    below.bar(centres, (count / max(total, 1e-12)).numpy(), width,
              color='grey')
