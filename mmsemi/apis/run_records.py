# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""What trainings left in their work directories, and tables of it."""
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Sequence

from mmengine.config import Config


def read_scalars(work_dir: os.PathLike) -> List[dict]:
    """Read what a training logged since its last start, oldest first.

    Args:
        work_dir (path): Work directory of a training by mmengine.

    Returns:
        list[dict]: Values by name; validation has entries of its own.

    Raises:
        FileNotFoundError: If nothing was logged there.
        ValueError: If the file is no list of JSON objects.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(
            f'{work_dir} holds no */vis_data/scalars.json: it is no work '
            'directory of a training, or nothing was logged yet.')
    scalars = []
    for number, line in enumerate(files[-1].read_text().splitlines(), 1):
        try:
            scalars.append(dict(json.loads(line)))
        except (TypeError, ValueError):
            raise ValueError(f'{files[-1]}, line {number} is no JSON object: '
                             f'{line[:80]!r}') from None
    return scalars


def last_value(scalars: Sequence[Mapping[str, float]], key: str) -> float:
    """Return the last logged value of a key; NaN if there is none."""
    values = [entry[key] for entry in scalars if key in entry]
    return values[-1] if values else math.nan


@dataclass(frozen=True)
class RunRecord:
    """One training.

    Args:
        name (str): Name of its config.
        seed (int or None): ``randomness.seed``.
        step (int): Last logged iteration, or epoch.
        values (dict[str, float]): Last value of each asked key, NaN where
            it was never logged.
    """

    name: str
    seed: int
    step: int
    values: Dict[str, float]

    @classmethod
    def read(cls, work_dir: os.PathLike,
             keys: Sequence[str]) -> 'RunRecord':
        """Read a work directory.

        Args:
            work_dir (path): Work directory of a training by mmengine.
            keys (Sequence[str]): Names of logged values.

        Returns:
            RunRecord: The training.

        Raises:
            FileNotFoundError: If it holds no log or no config.
        """
        scalars = read_scalars(work_dir)
        configs = sorted(Path(work_dir).glob('*.py'))
        if not configs:
            raise FileNotFoundError(f'{work_dir} holds no config (*.py).')
        config = Config.fromfile(configs[-1])
        seed = (config.get('randomness') or {}).get('seed')
        return cls(configs[-1].stem, seed, int(last_value(scalars, 'step')),
                   {key: last_value(scalars, key)
                    for key in keys})


def comparison_table(records: Sequence[RunRecord], key: str,
                     others: Sequence[str]) -> str:
    """Compare configs by the mean over their seeds.

    Args:
        records (Sequence[RunRecord]): Trainings, with ``key`` and ``others``
            among their values.
        key (str): What is listed for every seed.
        others (Sequence[str]): What is listed as the mean over seeds.

    Returns:
        str: A Markdown table, a row per config and number of steps, in the
        order in which they come; with several seeds also the standard
        deviation of ``key`` (over n - 1).

    Raises:
        ValueError: If a config has two trainings of one seed and length.
    """
    seeds = sorted({record.seed for record in records},
                   key=lambda seed: (seed is None, seed))
    rows: Dict[tuple, Dict[int, RunRecord]] = {}
    for record in records:
        row = rows.setdefault((record.name, record.step), {})
        if record.seed in row:
            raise ValueError(
                f'{record.name} has two trainings of {record.step} steps '
                f'with seed {record.seed}; name one work directory of each.')
        row[record.seed] = record
    heads = ['Config', 'Steps', *(f'{key}, seed {seed}' for seed in seeds),
             'Mean', *(f'{other}, mean' for other in others)]
    lines = [f'| {" | ".join(heads)} |',
             '| :-- |' + ' --: |' * (len(heads) - 1)]
    for (name, step), row in rows.items():
        cells = [f'`{name}`', f'{step:,}']
        cells += [_text(row[seed].values[key]) if seed in row else '–'
                  for seed in seeds]
        cells.append(_mean_text([r.values[key] for r in row.values()]))
        cells += [_text(_mean([r.values[other] for r in row.values()]))
                  for other in others]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _text(value: float) -> str:
    if math.isnan(value):
        return '–'
    # Losses are small, metrics in percent are not.
    return f'{value:.1f}' if abs(value) >= 5 else f'{value:.3f}'


def _mean_text(values: Sequence[float]) -> str:
    mean = _mean(values)
    if len(values) < 2 or math.isnan(mean):
        return _text(mean)
    variance = sum((v - mean)**2 for v in values) / (len(values) - 1)
    return f'{_text(mean)} ± {variance ** 0.5:.1f}'
