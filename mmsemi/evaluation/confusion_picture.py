# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
from pathlib import Path
from typing import Sequence, Union

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

# With more classes the numbers in the cells cannot be read.
MOST_WITH_NUMBERS = 30


def draw_confusion_matrix(counts: Tensor, class_names: Sequence[str],
                          path: Union[str, Path]) -> None:
    """Draw a confusion matrix in percent of the true pixels of each class.

    Args:
        counts (Tensor): Pixels (K, K + 1): rows are true classes, columns
            predicted ones; the last column, predictions that name no class,
            is drawn where it is not empty.
        class_names (Sequence[str]): K names.
        path (str or Path): Picture to write; its folder is made. The ending
            says the format, such as ``.png``.
    """
    columns = list(class_names)
    if counts[:, -1].any():
        columns.append('no class')
    true = counts.sum(1, keepdim=True)
    # A class without a true pixel has an empty row.
    shares = 100 * counts[:, :len(columns)].double() / true.clamp(min=1)
    side = min(max(0.45 * len(columns) + 2, 4), 30)
    figure = Figure(figsize=(side, side), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares.numpy(), cmap='Blues', vmin=0, vmax=100)
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set_xlabel('predicted class')
    axes.set_ylabel('true class')
    axes.set_title('% of the true pixels')
    if len(columns) <= MOST_WITH_NUMBERS:
        for row, values in enumerate(shares.tolist()):
            for column, value in enumerate(values):
                if value > 0:
                    axes.text(
                        column,
                        row,
                        f'{value:.0f}',
                        ha='center',
                        va='center',
                        fontsize=7,
                        color='white' if value > 50 else 'black')
    else:
        axes.tick_params(labelsize=5)
    figure.colorbar(image, ax=axes, shrink=0.8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
